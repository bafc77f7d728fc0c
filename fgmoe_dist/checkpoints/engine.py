"""What a checkpoint asks of the engine that trains: its model, and a parameter's optimiser state, whole."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class OptimizerState(Protocol):
    """Weights and Adam moments of single parameters, whole and in fp32, wherever the engine keeps them."""

    step: float  # the optimiser's, of all parameters
    copies: bool  # whether what `get` returns is the engine's no longer

    def get(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """`weight`, `exp_avg`, `exp_avg_sq`, each of the parameter's shape, fp32.

        A collective: all ranks call it for the same parameters in the same order.
        """

    def set(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """The reverse of `get`. Local: each rank keeps the part that is its own."""


class Engine(Protocol):
    module: nn.Module

    def optimizer_state(self) -> OptimizerState:
        """It may be asked for before the first step: moments are zero then. A collective."""
