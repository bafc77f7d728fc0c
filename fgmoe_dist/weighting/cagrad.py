"""Conflict-averse gradient descent (Liu et al., CAGrad, arXiv 2110.14048, algorithm 1), scaled as LibMTL does.

Near the mean gradient g_0, no further off than c ||g_0||, the direction that does most for the task that gains least:

    w = argmin_w  g_w . g_0 + c ||g_0|| ||g_w||,   g_w = sum_t w_t g_t,   w_t >= 0,   sum_t w_t = 1
    d = (g_0 + c ||g_0|| / ||g_w|| g_w) / (1 + c^2)

With c = 0 this is the mean of the gradients.
"""

from __future__ import annotations

from typing import Callable, Literal

import numpy as np
from pydantic import Field

from fgmoe_dist.weighting.base import GradientSettings, Seen, Weighting


class CAGradSettings(GradientSettings):
    kind: Literal["cagrad"] = Field("cagrad", description="how the tasks' losses or gradients are weighed")
    c: float = Field(0.5, ge=0, lt=1, description="how far from the mean gradient, in its lengths")


class CAGrad(Weighting):
    Settings = CAGradSettings
    needs_gradients = True

    def coefficients(self, seen: Seen) -> list[float]:
        return averse(seen.gram_TT.numpy(), self.settings.c).tolist()


def averse(gram_TT: np.ndarray, c: float) -> np.ndarray:
    """The coefficients of d, above, from the gradients' inner products."""
    tasks = len(gram_TT)
    mean_T = np.full(tasks, 1 / tasks)
    scale = gram_TT.diagonal().max()
    if scale <= 0 or c == 0:
        return mean_T
    unit_TT = gram_TT / scale
    radius = c * _length(unit_TT, mean_T)
    w_T = _on_simplex(lambda w_T: w_T @ unit_TT @ mean_T + radius * _length(unit_TT, w_T), tasks)
    length = _length(unit_TT, w_T)
    return (mean_T + (radius / length * w_T if length > 0 else 0)) / (1 + c**2)


def _length(gram_TT: np.ndarray, weight_T: np.ndarray) -> float:
    return np.sqrt(max(weight_T @ gram_TT @ weight_T, 0))


def _on_simplex(objective: Callable[[np.ndarray], float], tasks: int) -> np.ndarray:
    """The w_T, none negative, their sum 1, that makes a convex `objective` of the order of 1 smallest."""
    from scipy.optimize import minimize  # a quarter of a second that most runs need not wait

    found = minimize(
        objective,
        np.full(tasks, 1 / tasks),
        method="SLSQP",
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda w_T: w_T.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    w_T = found.x.clip(0)
    return w_T / w_T.sum()
