"""One process, plain autograd and torch's optimiser: a laptop's dry run, and what other engines are compared with.

It knows neither ranks nor reduced precision, so it trains a run only where it is asked to; it starts in a fraction of
the time of one that does. An engine for several ranks may derive from it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fgmoe_dist.checkpoints.engine import MOMENTS
from fgmoe_dist.config import Config
from fgmoe_dist.decoders.base import Decoder, Output
from fgmoe_dist.errors import UserError
from fgmoe_dist.training.optimizers import OPTIMIZERS


def prepare(ep_size: int) -> None:
    """One process holds all experts. UserError where there are others."""
    if dist.is_initialized() and (world := dist.get_world_size()) > 1:
        raise UserError(
            f"parallel.engine=plain: trains in one process, and there are {world} ranks; name another engine"
        )


def create_engine(decoder: Decoder, config: Config) -> PlainEngine:
    return PlainEngine(decoder, config)


class PlainEngine:
    """See `training.engines.Engine`."""

    def __init__(self, decoder: Decoder, config: Config):
        train = config.train
        if train.precision != "fp32":
            raise UserError(
                f"train.precision={train.precision}: parallel.engine={config.parallel.engine} has fp32 only"
            )
        self.module, self.clip_norm, self.grad_norm = decoder, train.clip_norm, 0.0
        self.accumulation, self._parts = train.batch_size // train.micro_batch_size, 0
        self.parameters = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        optimizer = OPTIMIZERS[train.optimizer]
        self.optimizer = optimizer(self.parameters, lr=train.lr, weight_decay=train.weight_decay)

    def train(self) -> None:
        self.module.train()

    def __call__(self, levels: list[Tensor]) -> Output:
        return self.module(levels)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    @torch.no_grad()
    def step(self) -> None:
        self._parts += 1
        if self._parts % self.accumulation:
            return
        self.average_gradients()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.grad_norm = sum(gradient.double().square().sum() for gradient in gradients).sqrt().item()
        if self.clip_norm and self.grad_norm > self.clip_norm:
            for gradient in gradients:
                gradient.mul_(self.clip_norm / (self.grad_norm + 1e-6))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def average_gradients(self) -> None:
        """Over ranks, once all of a step's are there; of one process they are the mean."""

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def optimizer_state(self) -> PlainState:
        return PlainState(self.optimizer)


class PlainState:
    """See `checkpoints.engine.OptimizerState`."""

    copies = False

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.state = optimizer.state
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    moments = {key: torch.zeros_like(parameter) for key in MOMENTS}
                    self.state[parameter] = {"step": torch.tensor(0.0), **moments}

    @property
    def step(self) -> float:
        return float(next(iter(self.state.values()))["step"])

    @step.setter
    def step(self, value: float) -> None:
        for state in self.state.values():
            state["step"].fill_(value)

    def get(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"weight": parameter.detach(), **{key: self.state[parameter][key] for key in MOMENTS}}

    @torch.no_grad()
    def set(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        parameter.copy_(values["weight"])
        for key in MOMENTS:
            self.state[parameter][key].copy_(values[key])
