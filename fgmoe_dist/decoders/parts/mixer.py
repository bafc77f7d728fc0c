"""Deformable mixer (DeMT, arXiv 2301.03461, section 3.2): mixes channels, then samples where the task wants to look.

A layer is [1x1 conv, GELU, norm], then residually [deformable 1x1 conv, GELU, norm]. A deformable convolution with
1x1 weights is bilinear sampling at learned offsets followed by a 1x1 convolution, so that `grid_sample` computes it
on any device and in any dtype.

Legend: B images, C channels, h x w grid.
"""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.layers import LayerNorm2d


class DeformableConv1x1(nn.Module):
    """Samples `x_BChw` at learned offsets, in grid cells, then mixes channels. Outside the grid is 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.offset = nn.Conv2d(channels, 2, 1)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.offset.weight)  # starts as the plain 1x1 convolution
        nn.init.zeros_(self.offset.bias)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h, w = x_BChw.shape[-2:]
        # bf16 resolves an offset to 1/2 cell only at 128 cells; positions are fp32 at least.
        offset_B2hw = self.offset(x_BChw).to(torch.promote_types(x_BChw.dtype, torch.float32))
        rows_h = torch.arange(h, device=x_BChw.device, dtype=offset_B2hw.dtype)
        columns_w = torch.arange(w, device=x_BChw.device, dtype=offset_B2hw.dtype)
        # grid_sample without align_corners puts the centre of cell i at (2 i + 1) / size - 1.
        x_Bhw = (2 * (columns_w + offset_B2hw[:, 0]) + 1) / w - 1
        y_Bhw = (2 * (rows_h[:, None] + offset_B2hw[:, 1]) + 1) / h - 1
        grid_Bhw2 = torch.stack([x_Bhw, y_Bhw], dim=-1)
        sampled = F.grid_sample(x_BChw.to(grid_Bhw2.dtype), grid_Bhw2, mode="bilinear", align_corners=False)
        return self.mix(sampled.to(x_BChw.dtype))


class MixerLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.mix, self.mix_norm = nn.Conv2d(channels, channels, 1), LayerNorm2d(channels)
        self.deform, self.deform_norm = DeformableConv1x1(channels), LayerNorm2d(channels)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: all."""
        return self.parameters()

    def forward(self, x_BChw: Tensor) -> Tensor:
        x_BChw = self.mix_norm(F.gelu(self.mix(x_BChw)))
        return x_BChw + self.deform_norm(F.gelu(self.deform(x_BChw)))


def deformable_mixer(channels: int, depth: int) -> nn.Module:
    """`depth` mixer layers, `x_BChw -> x_BChw`."""
    return nn.Sequential(*(MixerLayer(channels) for _ in range(depth)))
