"""Dynamic weight average (Liu, Johns and Davison, arXiv 1803.10704, section 3.3), as LibMTL's DWA.

    f_t = T softmax_t(r_t / temperature),   r_t = mean loss of the last epoch / mean loss of the epoch before

A task whose loss falls more slowly gets more. In the first two epochs there is no ratio, and every factor is 1. An
epoch is as many steps as see the training set once, or `every`; its means are of the losses of whole global batches.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from fgmoe_dist.weighting.base import Around, Seen, Weighting, WeightingSettings


class DWASettings(WeightingSettings):
    kind: Literal["dwa"] = Field("dwa", description="how the tasks' losses or gradients are weighed")
    temperature: float = Field(2.0, gt=0, description="of the softmax; larger: weights nearer to equal")
    every: int = Field(0, ge=0, description="steps of an epoch; 0: as many as see the training set once")


class DWA(Weighting):
    Settings = DWASettings
    needs_losses = True

    def __init__(self, settings: DWASettings, around: Around):
        super().__init__(settings, around)
        self.means: list[list[float]] = []  # of the last two epochs [2, T], the older first
        self.sums_T, self.steps = [0.0] * self.tasks, 0  # of the epoch under way

    def weights(self, step: int) -> list[float]:
        if len(self.means) < 2:
            return [1.0] * self.tasks
        # A loss of exactly 0, of a task that has no labels, changes nothing.
        ratios = [last / before if before else 1.0 for before, last in zip(*self.means)]
        greatest = max(ratios)
        powers = [math.exp((ratio - greatest) / self.settings.temperature) for ratio in ratios]
        return [self.tasks * power / sum(powers) for power in powers]

    def after_step(self, seen: Seen) -> None:
        self.sums_T = [total + loss for total, loss in zip(self.sums_T, seen.losses_T)]
        self.steps += 1
        if self.steps >= (self.settings.every or self.around.epoch_steps):
            self.means = [*self.means[-1:], [total / self.steps for total in self.sums_T]]
            self.sums_T, self.steps = [0.0] * self.tasks, 0

    def state_dict(self) -> dict[str, Any]:
        return {"means": [list(mean_T) for mean_T in self.means], "sums": list(self.sums_T), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means, self.sums_T, self.steps = [list(m) for m in state["means"]], list(state["sums"]), state["steps"]
