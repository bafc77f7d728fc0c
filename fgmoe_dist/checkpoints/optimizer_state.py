"""Weights and Adam moments of single parameters, whole and in fp32, whatever the ZeRO stage keeps where.

Every method that reads is a collective: all ranks call it for the same parameters in the same order.
"""

from __future__ import annotations

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class OptimizerState:
    def __init__(self, engine: DeepSpeedEngine):
        self.sharded = engine.optimizer if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state") else None
        self.base: torch.optim.Optimizer = self.sharded.optimizer if self.sharded else engine.optimizer
        self._materialise()

    def _materialise(self) -> None:
        """Gives every parameter its moments before the first step, so that there is something to read or to set."""
        for group in self.base.param_groups:
            for flat in group["params"]:
                if flat.requires_grad and not self.base.state[flat]:
                    self.base.state[flat] = {
                        "step": torch.tensor(0.0),
                        **{key: torch.zeros_like(flat) for key in MOMENTS},
                    }
        if self.sharded:
            # The optimiser links moments to parameters after its first step, before the groups that come later
            # have any; link again.
            self.sharded._hp_optimizer_states_linked = False
            self.sharded._lazy_init_hp_params_optimizer_state()

    @property
    def step(self) -> float:
        return float(next(iter(self.base.state.values()))["step"])

    @step.setter
    def step(self, value: float) -> None:
        for state in self.base.state.values():
            state["step"].fill_(value)

    def get(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """`weight`, `exp_avg`, `exp_avg_sq`, each of the parameter's shape, fp32."""
        if self.sharded:
            values = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            return {"weight": safe_get_full_fp32_param(parameter), **values}
        return {"weight": parameter.detach(), **{key: self.base.state[parameter][key] for key in MOMENTS}}

    def set(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """The reverse of `get`. Local: each rank keeps the part that is its own."""
        values = {key: value.to(parameter.device, torch.float32) for key, value in values.items()}
        parameter.data.copy_(values["weight"])
        if self.sharded:
            safe_set_full_fp32_param(parameter, values["weight"])
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[key], key)
        else:
            for key in MOMENTS:
                self.base.state[parameter][key].copy_(values[key])
