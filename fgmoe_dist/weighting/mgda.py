"""Multiple gradient descent (Sener and Koltun, MGDA, arXiv 1810.04650, equation 3): the shortest convex combination.

    c = argmin ||sum_t c_t g_t||^2,   c_t >= 0,   sum_t c_t = 1

Where that is not 0 it descends on every task. What differs from the paper: the gradients are those at the shared
parameters, not their bound at the features (MGDA-UB); c is solved for exactly, not by Frank-Wolfe; and a task without a
gradient, whose 0 would be the shortest of all, is left out.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fgmoe_dist.weighting.base import GradientSettings, Seen, Weighting


class MGDASettings(GradientSettings):
    kind: Literal["mgda"] = Field("mgda", description="how the tasks' losses or gradients are weighed")


class MGDA(Weighting):
    Settings = MGDASettings
    needs_gradients = True

    def coefficients(self, seen: Seen) -> list[float]:
        return shortest(seen.gram_TT.numpy()).tolist()


def shortest(gram_TT: np.ndarray) -> np.ndarray:
    """The c_T of the shortest convex combination of gradients with these inner products.

    Of all y >= 0, that which makes ||sum_t y_t g_t||^2 + (sum_t y_t - 1)^2 least points the same way.
    """
    from scipy.optimize import nnls  # a quarter of a second that most runs need not wait

    c_T, there = np.zeros(len(gram_TT)), gram_TT.diagonal() > 0
    if not there.any():
        return c_T
    gram_TT = gram_TT[there][:, there]
    values_T, vectors_TT = np.linalg.eigh(gram_TT / gram_TT.diagonal().min())
    rows_TT = np.sqrt(values_T.clip(0))[:, None] * vectors_TT.T  # columns with the gradients' inner products
    tasks = len(gram_TT)
    y_T, _ = nnls(np.vstack([rows_TT, np.ones(tasks)]), np.eye(tasks + 1)[tasks])
    c_T[there] = y_T / y_T.sum()
    return c_T
