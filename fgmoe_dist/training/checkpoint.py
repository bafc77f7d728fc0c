"""Logical checkpoints: experts by (block, task, expert), never by rank, so that any layout loads any other's.

`checkpoints/step-00000120/` holds

    state.json                     step, configuration, data set, encoder, who wrote it
    decoder.safetensors            replicated parameters: NAME.weight, NAME.exp_avg, NAME.exp_avg_sq, fp32
    experts-000-of-002.safetensors blocks.B.experts.TASK.EXPERT.WEIGHT.weight and its moments, one file an expert rank

It is written beside its final name and renamed; `latest` and `best` are small files that name a folder. The frozen
encoder is not in it, only its name and checksum. safetensors holds no code, so nothing is executed on loading.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import groups
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fgmoe_dist.config import Config, build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.layer import RoutedExperts
from fgmoe_dist.files import write_atomically
from fgmoe_dist.models.fgmoe import FGMoE, create_model
from fgmoe_dist.training.optimizer_state import MOMENTS, OptimizerState

FORMAT = 1
KINDS = ("weight", *MOMENTS)

# Where a block keeps its routers, and where the layers of other libraries do.
ROUTERS = "routed.routers.weight_TCE"
STOCK_GATES = {
    "deepspeed": "routed.layers.{}.deepspeed_moe.gate.wg.weight",
    "fairscale": "routed.layers.{}.gate.wg.weight",
}


@dataclass(frozen=True)
class CheckpointState:
    """`state.json`: what a checkpoint says of itself. Also the `DatasetInfo` that tasks are made from."""

    step: int
    config: dict[str, Any]
    tasks: list[str]
    classes: dict[str, list[str]]
    boundary_max_dist: float
    encoder_checksum: str
    world: int
    ep_size: int
    zero_stage: int
    score: Optional[float] = None
    format: int = FORMAT


def save_checkpoint(engine: DeepSpeedEngine, folder: Path, state: CheckpointState, keep: int) -> Path:
    """Writes `folder/step-...` together with all other ranks, then drops all but the newest `keep` and the best."""
    final = folder / f"step-{state.step:08d}"
    beside = folder / f".{final.name}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    dist.barrier()
    optimizer, model = OptimizerState(engine), engine.module
    decoder = {name: optimizer.get(parameter) for name, parameter in _replicated(model)}
    experts = {}
    for prefix, layer in _expert_layers(model):
        values = {
            id(parameter): optimizer.get(parameter) for parameter in layer.parameters() if is_moe_param(parameter)
        }
        for e in layer.logical_experts():
            whole = values[id(e.parameter)]
            experts[f"{prefix}.{e.task}.{e.expert}.{e.weight}"] = {
                kind: whole[kind] if e.index is None else whole[kind][e.index] for kind in KINDS
            }
    if dist.get_rank() == 0:
        _save_tensors(beside / "decoder.safetensors", decoder)
        (beside / "state.json").write_text(json.dumps(asdict(state), indent=1))
    group_name = f"ep_size_{state.ep_size}"
    if groups._get_expert_data_parallel_rank(group_name) == 0:
        ep_rank = groups._get_expert_parallel_rank(group_name)
        _save_tensors(beside / f"experts-{ep_rank:03d}-of-{state.ep_size:03d}.safetensors", experts)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        _point(folder, "latest", final.name)
        _prune(folder, keep)
    dist.barrier()
    return final


def mark_score(checkpoint: Path, score: float) -> None:
    """Notes in a checkpoint how good it is, higher being better, and calls it `best` if it is. Rank 0 alone."""
    folder = checkpoint.parent
    if score > _best_score(folder):
        _point(folder, "best", checkpoint.name)
    state = replace(read_state(checkpoint), score=score)
    write_atomically(checkpoint / "state.json", json.dumps(asdict(state), indent=1))


def rewind(folder: Path, checkpoint: Path) -> None:
    """Makes `checkpoint` the latest of `folder`, which a run goes on from; a later `best` is of an abandoned branch."""
    if checkpoint.parent.resolve() == folder.resolve():
        best = _pointed(folder, "best")
        if best is not None and best.name > checkpoint.name:
            (folder / "best").unlink()
        _point(folder, "latest", checkpoint.name)


def resume(engine: DeepSpeedEngine, checkpoint: Path, expected: Mapping[str, Any]) -> CheckpointState:
    """Loads weights, moments and optimiser step into `engine`, whatever layout wrote them.

    `expected` are facts the run must share with the checkpoint (`tasks`, `encoder_checksum`). Raises UserError where
    one differs, a tensor is missing or misshapen, or a file is damaged.
    """
    state = read_state(checkpoint)
    for key, value in expected.items():
        if getattr(state, key) != value:
            raise UserError(
                f"checkpoint {checkpoint}: its {key} is {getattr(state, key)}, this run's is {value};"
                f" use the same settings, or start anew with --resume never and another run.dir"
            )
    optimizer = OptimizerState(engine)
    with _Reader(checkpoint) as reader:
        for name, parameter in _replicated(engine.module):
            optimizer.set(parameter, {kind: reader.read(f"{name}.{kind}", parameter.shape) for kind in KINDS})
        for prefix, layer in _expert_layers(engine.module):
            _load_experts(reader, prefix, layer, optimizer)
    optimizer.step = state.step
    return state


def load_model(path: Path) -> tuple[FGMoE, Config, CheckpointState]:
    """The trained model of a run folder or checkpoint, whole on this process, ready to predict.

    Its experts are computed by the fused backend whichever trained them: the weights mean the same. UserError if there
    is no checkpoint, or the encoder's weights are not those it was trained on.
    """
    checkpoint = find_checkpoint(Path(path))
    if checkpoint is None:
        raise UserError(
            f"--checkpoint {path}: no checkpoint there; name a run folder or one of its checkpoints/step-... folders"
        )
    state = read_state(checkpoint)
    whole = {"parallel": {**state.config["parallel"], "ep_size": 1}, "experts": _as_fused(state.config["experts"])}
    config = build_config({**state.config, **whole}, origin=str(checkpoint / "state.json"))
    model = create_model(config, state)
    if model.encoder.checksum != state.encoder_checksum:
        raise UserError(
            f"checkpoint {checkpoint}: was trained on other encoder weights than encoder.weights="
            f"{config.encoder.weights} gives here ({model.encoder.source}); install or download those"
        )
    with _Reader(checkpoint) as reader, torch.no_grad():
        for name, parameter in _replicated(model):
            stock_gate = STOCK_GATES.get(state.config["experts"]["backend"])
            if stock_gate and name.endswith(ROUTERS):
                parameter.copy_(_read_stock_gates(reader, name.replace(ROUTERS, stock_gate), parameter.shape))
            else:
                parameter.copy_(reader.read(f"{name}.weight", parameter.shape))
        for prefix, layer in _expert_layers(model):
            for e in layer.logical_experts():
                target = e.parameter if e.index is None else e.parameter[e.index]
                target.copy_(reader.read(f"{prefix}.{e.task}.{e.expert}.{e.weight}.weight", target.shape))
    if config.train.precision == "bf16":  # as the engine cast it; scored in another precision it would score otherwise
        model = model.to(torch.bfloat16)
    return model.eval(), config, state


def _as_fused(experts: dict[str, Any]) -> dict[str, Any]:
    return {**experts, "backend": "fused", "kernel": "auto"}


def _read_stock_gates(reader: _Reader, name: str, shape_TCE: torch.Size) -> Tensor:
    """The fused backend's routers from a stock backend's gates, one `[E, C]` a task."""
    tasks, channels, experts = shape_TCE
    gates = [reader.read(f"{name.format(t)}.weight", torch.Size([experts, channels])) for t in range(tasks)]
    return torch.stack([gate_EC.T for gate_EC in gates])


def find_checkpoint(path: Path) -> Optional[Path]:
    """The checkpoint that `path` means: one itself, a `checkpoints` folder, or a run folder. None if there is none."""
    for folder in (path, path / "checkpoints"):
        if (folder / "state.json").is_file():
            return folder
        for pointer in ("latest", "best"):
            if (folder / pointer).is_file() and (
                folder / (folder / pointer).read_text().strip() / "state.json"
            ).is_file():
                return folder / (folder / pointer).read_text().strip()
    return None


def read_state(checkpoint: Path) -> CheckpointState:
    try:
        values = json.loads((checkpoint / "state.json").read_text())
        if values.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {checkpoint}: format {values.get('format')}; this version reads format {FORMAT}"
            )
        return CheckpointState(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"checkpoint {checkpoint}: state.json cannot be read ({error}); name another checkpoint"
        ) from None


def _load_experts(reader: _Reader, prefix: str, layer: RoutedExperts, optimizer: OptimizerState) -> None:
    by_parameter: dict[int, tuple[nn.Parameter, list]] = {}
    for e in layer.logical_experts():
        by_parameter.setdefault(id(e.parameter), (e.parameter, []))[1].append(e)
    for parameter, members in by_parameter.values():
        values = {}
        for kind in KINDS:
            shape = parameter.shape if members[0].index is None else parameter.shape[1:]
            slices = [reader.read(f"{prefix}.{e.task}.{e.expert}.{e.weight}.{kind}", shape) for e in members]
            values[kind] = slices[0] if members[0].index is None else torch.stack(slices)
        optimizer.set(parameter, values)


def _replicated(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_moe_param(parameter):
            yield _plain(name), parameter


def _expert_layers(model: nn.Module) -> Iterator[tuple[str, RoutedExperts]]:
    for module in model.modules():
        if isinstance(module, RoutedExperts):
            yield f"blocks.{module.block}.experts", module


def _plain(name: str) -> str:
    """A parameter's name without what activation checkpointing put in between."""
    return name.replace("_checkpoint_wrapped_module.", "")


def _save_tensors(path: Path, values: Mapping[str, Mapping[str, Tensor]]) -> None:
    tensors = {
        f"{name}.{kind}": kinds[kind].detach().float().cpu().clone() for name, kinds in values.items() for kind in kinds
    }
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


class _Reader:
    """Finds a tensor by name in whichever file of the checkpoint holds it."""

    def __init__(self, checkpoint: Path):
        self.checkpoint, self._where, self._files = checkpoint, {}, []

    def __enter__(self) -> _Reader:
        for path in sorted(self.checkpoint.glob("*.safetensors")):
            try:
                file = safe_open(path, framework="pt", device="cpu")
                self._where.update({key: file for key in file.keys()})  # noqa: SIM118 - no dict, cannot be iterated
            except (SafetensorError, OSError) as error:
                raise UserError(f"checkpoint {path}: is damaged ({error}); resume from an older one") from None
            self._files.append(file)
        return self

    def __exit__(self, *_) -> None:
        self._where, self._files = {}, []

    def read(self, name: str, shape: torch.Size) -> Tensor:
        if name not in self._where:
            raise UserError(
                f"checkpoint {self.checkpoint}: has no {name}; it was written for another model, or a file is missing"
            )
        value = self._where[name].get_tensor(name)
        if value.shape != shape:
            raise UserError(
                f"checkpoint {self.checkpoint}: {name} is {list(value.shape)}, the model's is {list(shape)};"
                f" use the configuration it was trained with"
            )
        return value


def _point(folder: Path, pointer: str, name: str) -> None:
    write_atomically(folder / pointer, name + "\n")


def _pointed(folder: Path, pointer: str) -> Optional[Path]:
    return folder / (folder / pointer).read_text().strip() if (folder / pointer).is_file() else None


def _best_score(folder: Path) -> float:
    best = _pointed(folder, "best")
    score = read_state(best).score if best is not None and best.is_dir() else None
    return float("-inf") if score is None else score


def _prune(folder: Path, keep: int) -> None:
    # By age and not by step: a run resumed further back has later steps of an abandoned branch beside it.
    by_age = sorted(folder.glob("step-*"), key=lambda path: path.stat().st_mtime)
    kept = {*by_age[-keep:], _pointed(folder, "best"), _pointed(folder, "latest")}
    for old in set(folder.glob("step-*")) - kept:
        shutil.rmtree(old, ignore_errors=True)
