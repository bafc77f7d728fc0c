"""Gradient surgery (Yu et al., PCGrad, arXiv 2001.06782, algorithm 1).

For each task i, in turn with every other task j in a random order: where the gradient of i, as changed so far, points
against the original gradient of j, its part along g_j is taken away. The changed gradients are added up.

All of this stays within the span of the original gradients, so that inner products say everything: the answer is a
coefficient per task. What differs from the paper: the gradients are of the whole global batch, in fp32, and the order
is drawn from (seed, step), so that the ranks and their number do not matter and a resumed run draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fgmoe_dist.weighting.base import GradientSettings, Seen, Weighting


class PCGradSettings(GradientSettings):
    kind: Literal["pcgrad"] = Field("pcgrad", description="how the tasks' losses or gradients are weighed")


class PCGrad(Weighting):
    Settings = PCGradSettings
    needs_gradients = True

    def coefficients(self, seen: Seen) -> list[float]:
        return surgery(seen.gram_TT, draw_orders(self.tasks, self.around.seed, seen.step)).tolist()


def draw_orders(tasks: int, seed: int, step: int) -> list[list[int]]:
    """For each task, the others in the order in which it meets them."""
    draw = random.Random(f"{seed} {step}")
    orders = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    for order in orders:
        draw.shuffle(order)
    return orders


def surgery(gram_TT: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """c_T of sum_t c_t g_t, for task i projected in turn against the tasks in `orders[i]`."""
    changed_TT = torch.eye(len(gram_TT), dtype=gram_TT.dtype)  # row i: the changed gradient of i, by original ones
    for i, order in enumerate(orders):
        for j in order:
            dot = changed_TT[i] @ gram_TT[j]
            if dot < 0:
                changed_TT[i, j] -= dot / gram_TT[j, j]
    return changed_TT.sum(0)
