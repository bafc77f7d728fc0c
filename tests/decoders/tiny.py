"""Tiny decoders of every kind on levels of noise: no encoder is made, and no file read.

Legend: B images, C channels, h x w grid.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fgmoe_dist.config import Config, build_config
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import Decoder, Levels
from fgmoe_dist.model import create_decoder
from fgmoe_dist.tasks import create_tasks
from tests.runs import SETTINGS

INFO = SimpleNamespace(
    tasks=["semseg", "depth", "normals", "edge"], classes={"semseg": ["wall", "floor"]}, boundary_max_dist=0.01
)
SIZE, IMAGES = (112, 144), 2
LEVELS = Levels((24, 24), (16, 16))

# What makes a decoder small: of these, the keys that it has, and those of its own.
SMALL = {"channels": 16, "stride": 8, "mixer_depth": 1}
OWN: dict[str, dict[str, Any]] = {
    "mti_net": {"scales": 2},
    "invpt": {"features": 12},
    "taskexpert": {"experts": 3},
    # Without noise, which belongs to the place of an image in the step's micro-batches.
    "mlore": {"ranks": [2, 3, 4], "own_rank": 2, "top_k": 2, "noise": 0},
}


def settings_of(kind: str) -> dict[str, Any]:
    """The section `decoder` of a tiny one."""
    fields = DECODERS[kind].Settings.model_fields
    return {"kind": kind, **{key: value for key, value in SMALL.items() if key in fields}, **OWN.get(kind, {})}


def configuration(kind: str, sections: dict[str, Any] | None = None, **settings: Any) -> Config:
    """`settings` are the decoder's own, `sections` whatever else differs from that of tiny runs."""
    values = {**SETTINGS, "decoder": {**settings_of(kind), **settings}}
    for name, section in (sections or {}).items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return build_config(values)


def decoder_of(config: Config) -> Decoder:
    return create_decoder(config, LEVELS, create_tasks(config.tasks, INFO))


def tiny_decoder(kind: str, sections: dict[str, Any] | None = None, **settings: Any) -> Decoder:
    return decoder_of(configuration(kind, sections, **settings))


def levels(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of 7 x 9 patches of 16 pixels each way."""
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(IMAGES, c, 7, 9, generator=generator).to(dtype) for c in LEVELS.channels]


def labels(decoder: Decoder) -> dict[str, Tensor]:
    """Any that are valid."""
    found, generator = {}, torch.Generator().manual_seed(1)
    for task in decoder.tasks:
        label = task.label.empty(IMAGES, SIZE)
        drawn = torch.rand(label.shape, generator=generator)
        found[task.name] = drawn + 0.5 if label.is_floating_point() else (drawn * 2).to(label.dtype)
    return found
