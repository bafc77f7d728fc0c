"""Weights by learnt uncertainty (Kendall, Gal and Cipolla, arXiv 1705.07115), in the form of LibMTL's UW.

    objective   sum_t  L_t / (2 exp(s_t)) + s_t / 2        s_t = log sigma_t^2, -0.5 at first

For constant losses its minimum is at exp(s_t) = L_t, where every task has the weight 1 / (2 L_t).

What differs from LibMTL: there s is a parameter like the model's. Here it has an Adam of its own, outside the engine,
which takes the closed-form gradient 1/2 - L_t / (2 exp(s_t)) at the losses of the whole global batch. So s is the same
on every rank without being exchanged, no ZeRO stage splits it, and it takes no part in the gradient's norm and
clipping. Nor do weight decay and the schedule of the learning rate act on it: its rate is `lr`, and decay would pull
exp(s) to 1, a loss of 1, which means nothing. The s_t / 2 of the objective reaches no parameter of the model and is not
in the logged loss.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from fgmoe_dist.weighting.adam import Adam
from fgmoe_dist.weighting.base import Around, Seen, Weighting, WeightingSettings

FIRST_S = -0.5


class UncertaintySettings(WeightingSettings):
    kind: Literal["uncertainty"] = Field("uncertainty", description="how the tasks' losses or gradients are weighed")
    lr: float = Field(1e-4, gt=0, description="learning rate of the log variances, by Adam")


class Uncertainty(Weighting):
    Settings = UncertaintySettings
    needs_losses = True

    def __init__(self, settings: UncertaintySettings, around: Around):
        super().__init__(settings, around)
        self.adam = Adam([FIRST_S] * self.tasks, settings.lr)

    @property
    def s_T(self) -> list[float]:
        return self.adam.values

    def weights(self, step: int) -> list[float]:
        return [0.5 * math.exp(-s) for s in self.s_T]

    def after_step(self, seen: Seen) -> None:
        self.adam.step([0.5 - 0.5 * loss * math.exp(-s) for loss, s in zip(seen.losses_T, self.s_T)])

    def state_dict(self) -> dict[str, Any]:
        state = self.adam.state_dict()
        return {"s": state.pop("values"), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict({"values": state["s"], **state})
