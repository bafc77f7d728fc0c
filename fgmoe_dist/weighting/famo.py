"""FAMO (Liu et al., arXiv 2306.03792): the losses' logarithms fall alike, at the cost of one more forward pass.

    objective of a step    sum_t z_t log L_t / c,   z = softmax(w),   c = sum_t z_t / L_t
    after it               d_t = log L_t - log(L_t of the same batch now);  Adam steps w along J^T d, J = dz/dw

c keeps the factors' sum at 1 and is taken as a constant. d_t is how much the step has done for a task: w moves to
those for which it has done least. The first equation needs the losses of the step's whole batch before its backward
pass: they are exchanged over ranks, and computed beforehand where a step has several micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from fgmoe_dist.weighting.adam import Adam
from fgmoe_dist.weighting.base import Around, Seen, Weighting, WeightingSettings

FLOOR = 1e-8  # beside a loss, as published: that of a task without labels is 0


class FAMOSettings(WeightingSettings):
    kind: Literal["famo"] = Field("famo", description="how the tasks' losses or gradients are weighed")
    lr: float = Field(0.025, gt=0, description="learning rate of w, by Adam")
    weight_decay: float = Field(1e-3, ge=0, description="of w: how strongly it is pulled to equal weights")


class FAMO(Weighting):
    Settings = FAMOSettings
    needs_losses_before = needs_losses_after = True

    def __init__(self, settings: FAMOSettings, around: Around):
        super().__init__(settings, around)
        self.adam = Adam([0.0] * self.tasks, settings.lr, settings.weight_decay)

    def weights_of(self, step: int, losses_T: Sequence[float]) -> list[float]:
        shares_T = [z / (loss + FLOOR) for z, loss in zip(self._z_T(), losses_T)]
        return [share / sum(shares_T) for share in shares_T]

    def after_step(self, seen: Seen) -> None:
        gains_T = [
            math.log(before + FLOOR) - math.log(after + FLOOR)
            for before, after in zip(seen.losses_T, seen.losses_after_T)
        ]
        z_T = self._z_T()
        mean = sum(z * gain for z, gain in zip(z_T, gains_T))
        self.adam.step([z * (gain - mean) for z, gain in zip(z_T, gains_T)])

    def _z_T(self) -> list[float]:
        powers = [math.exp(w - max(self.adam.values)) for w in self.adam.values]
        return [power / sum(powers) for power in powers]

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)
