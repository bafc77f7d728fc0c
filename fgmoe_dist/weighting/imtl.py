"""Impartial multi-task learning (Liu et al., ICLR 2021), the gradient's part, IMTL-G.

The combination sum_t c_t g_t, sum_t c_t = 1, whose projections onto all u_t = g_t / ||g_t|| are the same:

    c_(2..T) = g_1 U^T (D U^T)^-1,   rows of U: u_1 - u_t,   rows of D: g_1 - g_t,   c_1 = 1 - sum of the others

A coefficient may be negative. A task without a gradient gets 0, and where gradients are parallel, so that many
combinations would do, the shortest c_(2..T) is taken. What differs from the paper: its other part, IMTL-L, which
scales the losses, is not here; `uncertainty` is its nearest kin.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fgmoe_dist.weighting.base import GradientSettings, Seen, Weighting


class IMTLSettings(GradientSettings):
    kind: Literal["imtl"] = Field("imtl", description="how the tasks' losses or gradients are weighed")


class IMTL(Weighting):
    Settings = IMTLSettings
    needs_gradients = True

    def coefficients(self, seen: Seen) -> list[float]:
        return impartial(seen.gram_TT.numpy()).tolist()


def impartial(gram_TT: np.ndarray) -> np.ndarray:
    """The c_T above from the gradients' inner products."""
    c_T, there = np.zeros(len(gram_TT)), gram_TT.diagonal() > 0
    if not there.any():
        return c_T
    gram_TT = gram_TT[there][:, there]
    along_TT = gram_TT / np.sqrt(gram_TT.diagonal())  # [s, t]: g_s . u_t
    first_T = along_TT[0, :1] - along_TT[0, 1:]  # g_1 U^T
    others_TT = first_T - (along_TT[1:, :1] - along_TT[1:, 1:])  # D U^T
    others_T = first_T @ np.linalg.pinv(others_TT)
    c_T[there] = [1 - others_T.sum(), *others_T]
    return c_T
