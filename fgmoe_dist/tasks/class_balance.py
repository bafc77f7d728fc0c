"""Weighs the classes of a task so that each has a like share of the gradient (after MEJO, arXiv 2509.12893).

MEJO balances the gradients of frequent and rare classes in what it calls coordinated gradient learning; its equations
could not be read, so that this is our own reading. A pixel of class c pulls its class's logit up by 1 - p_c. With P_c
the sum of these over the pixels of class c, faded by `FADING` each step:

    w_c = clip((mean P / P_c)^strength, 1 / LIMIT, LIMIT)          mean over the classes that have been seen
    loss = sum_pixels w_c(pixel) CE / sum_pixels w_c(pixel)

Where classes are balanced, all P alike, w is 1 and this is plain cross entropy; so it is before the first step. P is of
the whole global batch: the same on every rank, on any number of them, and in checkpoints.

Legend: B images, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

FADING, LIMIT = 0.99, 10.0


class ClassBalance:
    """Of one task. `note` in every loss that trains, `update` once per step."""

    def __init__(self, classes: int, strength: float):
        self.strength = strength
        self.pull_K = torch.zeros(classes, dtype=torch.float64)  # P
        self._noted_K = torch.zeros(classes, dtype=torch.float64)  # by this rank in the step under way

    def weights(self) -> Tensor:
        """w_K, fp32 on the CPU; 1 for a class that has not been seen."""
        seen_K = self.pull_K > 0
        if not seen_K.any():
            return torch.ones(len(seen_K))
        ratio_K = self.pull_K[seen_K].mean() / self.pull_K.where(seen_K, 1)
        return torch.where(seen_K, ratio_K**self.strength, 1.0).clamp(1 / LIMIT, LIMIT).float()

    def note(self, loss_BHW: Tensor, class_BHW: Tensor, valid_BHW: Tensor) -> None:
        """Takes note of cross entropies: e^-loss is the probability of a pixel's own class."""
        with torch.no_grad():
            pull = (1 - (-loss_BHW[valid_BHW].double()).exp()).cpu()
            self._noted_K.index_add_(0, class_BHW[valid_BHW].long().cpu(), pull)

    def state(self) -> list[float]:
        return self.pull_K.tolist()

    def restore(self, state: Sequence[float]) -> None:
        if len(state) == len(self.pull_K):
            self.pull_K = torch.tensor(list(state), dtype=torch.float64)


def update(balances: Sequence[ClassBalance], device: torch.device) -> None:
    """After a step: adds what all ranks have noted; a collective."""
    if not balances:
        return
    noted = torch.cat([balance._noted_K for balance in balances]).to(device)
    if dist.is_initialized():
        dist.all_reduce(noted)
    for balance, noted_K in zip(balances, noted.cpu().split([len(balance.pull_K) for balance in balances])):
        balance.pull_K = FADING * balance.pull_K + noted_K
        balance._noted_K.zero_()
