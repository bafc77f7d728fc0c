"""NDDR-CNN (Gao et al., arXiv 1801.08297), as the survey of arXiv 2004.13379 compares it.

A network per task; at several depths the features of all tasks side by side are reduced to each task's width anew:

    x~_i = ReLU(norm(W_i [x_1; ...; x_T]))        W_i a 1x1 convolution, at first alpha I for x_i, beta I for others

What differs, and why:
- The encoder is frozen here, so that the networks begin behind it: they are those of `single_task`, with such a layer
  behind the aggregators and behind each mixer layer.
- Layer norm in the place of batch norm, as everywhere here (parts/layers.py).
- No short cuts from all depths to the end, which the paper has as a variant.

Legend: B images, C channels, h x w grid, T tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.columns import MixedColumns, Mixing, MixingSettings
from fgmoe_dist.decoders.parts.layers import LayerNorm2d


class NDDRSettings(MixingSettings):
    kind: Literal["nddr"] = Field("nddr", description="networks of all tasks, their features fused by 1x1 convolutions")


class Fusion(Mixing):
    def __init__(self, tasks: int, channels: int, alpha: float, beta: float):
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(tasks * channels, channels, 1, bias=False) for _ in range(tasks))
        self.norms = nn.ModuleList(LayerNorm2d(channels) for _ in range(tasks))
        for task, reduce in enumerate(self.reduce):
            share_T = torch.full((tasks,), beta)
            share_T[task] = alpha
            first_CK = torch.kron(share_T, torch.eye(channels))
            reduce.weight.data.copy_(first_CK[:, :, None, None])

    def forward(self, x_T: list[Tensor]) -> list[Tensor]:
        x_BKhw = torch.cat(x_T, dim=1)
        return [F.relu(norm(reduce(x_BKhw))) for norm, reduce in zip(self.norms, self.reduce)]


class NDDR(MixedColumns):
    Settings, mixing = NDDRSettings, Fusion
