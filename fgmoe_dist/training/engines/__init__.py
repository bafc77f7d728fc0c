"""Engines: what runs a decoder's forward and backward passes over ranks and updates it. A file and a line for each.

An engine's module has `prepare(ep_size)`, called before the model is built, and `create_engine(decoder, config)`. It is
imported when it is named, so that DeepSpeed is there only for who trains with it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Protocol

from torch import Tensor

from fgmoe_dist.checkpoints import engine
from fgmoe_dist.decoders.base import Output
from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import HINT

ENGINES = {
    "deepspeed": "fgmoe_dist.training.engines.deepspeed",
    "plain": "fgmoe_dist.training.engines.plain",
}


class Engine(engine.Engine, Protocol):
    """A decoder (`module`) under training: its gradients are averaged over ranks and accumulated over micro-batches."""

    accumulation: int  # micro-batches of a step on each rank
    grad_norm: float  # of the latest step, before clipping, over the whole model; not finite or negative: it diverged

    def train(self) -> None:
        """Puts the decoder into training mode."""

    def __call__(self, levels: list[Tensor]) -> Output:
        """The decoder's forward pass."""

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a micro-batch's loss, a mean over its images."""

    def step(self) -> None:
        """Called after each backward pass; after the last of a step it clips and updates."""

    def set_learning_rate(self, lr: float) -> None: ...


def load_engine(name: str) -> ModuleType:
    """The module of the engine `name`. UserError if there is none such."""
    check_engine(name)
    return importlib.import_module(ENGINES[name])


def check_engine(name: str) -> None:
    """UserError if there is no engine `name`."""
    if name not in ENGINES:
        raise UserError(f"parallel.engine={name}: there is no such engine; name one of {', '.join(ENGINES)}{HINT}")
