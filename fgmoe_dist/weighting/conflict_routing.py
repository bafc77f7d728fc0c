"""Conflict routing, our own reading of what DRGrad (arXiv 2510.09643) says in words; its equations are not public.

A task's gradient goes on in full where the other tasks' agree with it, and is held back where they do not:

    a_t = mean over s != t of cos(g_t, g_s),      c_t = T exp(strength a_t) / sum_s exp(strength a_s)

What is read into the words: that agreement is the mean cosine at the shared parameters, and that the router is a
softmax of it. DRGrad routes towards one preferred task of a recommender; here no task is preferred. Do not quote
results of this as DRGrad's. With strength 0 gradients are added up. A task without a gradient agrees with none: 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fgmoe_dist.weighting.base import GradientSettings, Seen, Weighting


class ConflictRoutingSettings(GradientSettings):
    kind: Literal["conflict_routing"] = Field(
        "conflict_routing",
        description="how the tasks' losses or gradients are weighed: our reading of DRGrad, which is not public",
    )
    strength: float = Field(1.0, ge=0, description="how much a task in conflict is held back; 0: not at all")


class ConflictRouting(Weighting):
    Settings = ConflictRoutingSettings
    needs_gradients = True

    def coefficients(self, seen: Seen) -> list[float]:
        return routed(seen.gram_TT.numpy(), self.settings.strength).tolist()


def routed(gram_TT: np.ndarray, strength: float) -> np.ndarray:
    """The c_T above from the gradients' inner products."""
    lengths_T, tasks = np.sqrt(gram_TT.diagonal().clip(0)), len(gram_TT)
    products_TT = np.outer(lengths_T, lengths_T)
    cosine_TT = np.divide(gram_TT, products_TT, out=np.zeros_like(gram_TT), where=products_TT > 0)
    np.fill_diagonal(cosine_TT, 0)
    agreement_T = strength * cosine_TT.sum(1) / max(tasks - 1, 1)
    powers_T = np.exp(agreement_T - agreement_T.max())
    return tasks * powers_T / powers_T.sum()
