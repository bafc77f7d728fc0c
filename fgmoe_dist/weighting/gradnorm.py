"""GradNorm (Chen et al., arXiv 1711.02257): weights under which the tasks' gradients are of like size.

    G_t = f_t ||g_t|| at the shared parameters,   r_t = (L_t / L_t of the first step) / mean of these over tasks
    objective   sum_t |G_t - mean(G) r_t^alpha|,   mean(G) r^alpha taken as a constant

A task that has learnt less than the others is to have the larger gradient. What differs from the paper: the weights
are f = T softmax(p), and Adam learns p, as LibMTL has it; so they stay positive and their sum T without being divided.
The gradients are those at all shared parameters and not at the last shared layer's alone; with `at: features` at the
feature that layer gives.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from fgmoe_dist.weighting.adam import Adam
from fgmoe_dist.weighting.base import Around, GradientSettings, Seen, Weighting


class GradNormSettings(GradientSettings):
    kind: Literal["gradnorm"] = Field("gradnorm", description="how the tasks' losses or gradients are weighed")
    alpha: float = Field(1.5, ge=0, description="how much more gradient a task that lags behind is given; 0: none")
    lr: float = Field(0.025, gt=0, description="learning rate of the weights' logits, by Adam")


class GradNorm(Weighting):
    Settings = GradNormSettings
    needs_gradients = True

    def __init__(self, settings: GradNormSettings, around: Around):
        super().__init__(settings, around)
        self.adam, self.first_T = Adam([0.0] * self.tasks, settings.lr), []

    def weights(self, step: int) -> list[float]:
        powers = [math.exp(p - max(self.adam.values)) for p in self.adam.values]
        return [self.tasks * power / sum(powers) for power in powers]

    def after_step(self, seen: Seen) -> None:
        self.first_T = self.first_T or list(seen.losses_T)
        norms_T = seen.gram_TT.diagonal().clamp(min=0).sqrt().tolist()
        # A task that had no labels in the first step has no pace.
        paces_T = [loss / first if first else 1.0 for loss, first in zip(seen.losses_T, self.first_T)]
        mean_norm, mean_pace = sum(norms_T) / self.tasks, sum(paces_T) / self.tasks
        targets_T = [
            mean_norm * (pace / mean_pace) ** self.settings.alpha if mean_pace else mean_norm for pace in paces_T
        ]
        # By f_t the objective changes by sign * ||g_t||, which times f_t is sign * G_t.
        changes_T = [math.copysign(norm, norm - to) if norm != to else 0.0 for norm, to in zip(norms_T, targets_T)]
        factors_T = self.weights(seen.step)
        self.adam.step([change - f / self.tasks * sum(changes_T) for change, f in zip(changes_T, factors_T)])

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "first_losses": list(self.first_T)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.first_T = list(state["first_losses"])
