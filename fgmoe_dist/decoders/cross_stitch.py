"""Cross-stitch networks (Misra et al., arXiv 1604.03539), as the survey of arXiv 2004.13379 compares them.

A network per task; at several depths each task's feature becomes a learned sum over tasks, a factor per channel:

    x~_i = sum_j alpha_ij * x_j        alpha_ii = alpha, alpha_ij = beta at first

What differs, and why:
- The encoder is frozen here, so that the networks begin behind it: they are those of `single_task`, with a stitch
  behind the aggregators and behind each mixer layer. With alpha 1 and beta 0 they are `single_task`, exactly.
- The factors train at the learning rate of everything else; the paper gives them a larger one.

Legend: B images, C channels, h x w grid, T tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.parts.columns import MixedColumns, Mixing, MixingSettings


class CrossStitchSettings(MixingSettings):
    kind: Literal["cross_stitch"] = Field("cross_stitch", description="networks of all tasks, their features summed")


class Stitch(Mixing):
    def __init__(self, tasks: int, channels: int, alpha: float, beta: float):
        super().__init__()
        alpha_TT = beta + (alpha - beta) * torch.eye(tasks)
        self.alpha_TTC = nn.Parameter(alpha_TT[..., None].repeat(1, 1, channels))

    def forward(self, x_T: list[Tensor]) -> list[Tensor]:
        return [sum(a_C[:, None, None] * x for a_C, x in zip(alpha_TC, x_T)) for alpha_TC in self.alpha_TTC]


class CrossStitch(MixedColumns):
    Settings, mixing = CrossStitchSettings, Stitch
