"""Nash-MTL (Navon et al., arXiv 2202.01017): the tasks bargain over the step, and none can gain but at another's cost.

    alpha > 0 with   G alpha = 1 / alpha  (each entry),   G the inner products of the gradients
    d = sum_t alpha_t g_t

alpha is where 1/2 a^T G a - sum_t log a_t is smallest: its gradient is G a - 1/a. That function is convex and
self-concordant, so that a damped Newton method reaches its one minimum from anywhere; the published code approximates
it by a sequence of convex programs, and needs a solver for these. G is divided by its norm first, as there.

What differs, and why: d's length is sqrt(T) whatever the losses' size, as d^T d = sum_t alpha_t (G alpha)_t = T.
People have seen weights of 1e-4 under which nothing learnt, and others the contrary; so alpha is scaled to the sum T,
that of equal weights, and the same learning rate serves. `rescale: false` leaves alpha as it is, for the normed G. The
published code's heads are weighed by alpha too: so here, at the cost of a gradient of each task for them as well.
A task without a gradient takes no part, and keeps the weight 1.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from fgmoe_dist.weighting.base import Around, Seen, Weighting, WeightingSettings

STEPS, TOLERANCE = 200, 1e-12


class NashSettings(WeightingSettings):
    kind: Literal["nash"] = Field("nash", description="how the tasks' losses or gradients are weighed")
    every: int = Field(1, ge=1, description="steps between two bargains; those between keep the last one's weights")
    rescale: bool = Field(True, description="the weights' sum is the number of tasks")


class Nash(Weighting):
    Settings = NashSettings
    needs_gradients = weighs_others = True

    def __init__(self, settings: NashSettings, around: Around):
        super().__init__(settings, around)
        self.alpha_T: list[float] = []

    def coefficients(self, seen: Seen) -> list[float]:
        if not self.alpha_T or seen.step % self.settings.every == 0:
            self.alpha_T = bargain(seen.gram_TT.numpy(), self.settings.rescale).tolist()
        return self.alpha_T

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": list(self.alpha_T)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha_T = list(state["alpha"])


def bargain(gram_TT: np.ndarray, rescale: bool) -> np.ndarray:
    """The alpha_T above of gradients with these inner products."""
    alpha_T, there = np.ones(len(gram_TT)), gram_TT.diagonal() > 0
    if not there.any():
        return alpha_T
    gram_TT = gram_TT[there][:, there]
    found_T = solve(gram_TT / np.linalg.norm(gram_TT))
    alpha_T[there] = found_T * len(found_T) / found_T.sum() if rescale else found_T
    return alpha_T


def solve(gram_TT: np.ndarray) -> np.ndarray:
    """a > 0 with `G a = 1 / a`, by Newton's method on variables scaled by a, damped by its own decrement."""
    a_T = 1 / np.sqrt(gram_TT.diagonal())
    for _ in range(STEPS):
        scaled_TT = a_T[:, None] * gram_TT * a_T  # the Hessian for a (1 + step), but for its identity
        gradient_T = scaled_TT.sum(1) - 1
        step_T = np.linalg.solve(scaled_TT + np.eye(len(a_T)), -gradient_T)
        decrement = np.sqrt(max(-gradient_T @ step_T, 0))
        # 1 / (1 + decrement) keeps a positive and descends always; near the minimum whole steps are quadratic.
        a_T = a_T * (1 + step_T / (1 + decrement if decrement > 0.25 else 1))
        if np.abs(gradient_T).max() < TOLERANCE:
            break
    return a_T
