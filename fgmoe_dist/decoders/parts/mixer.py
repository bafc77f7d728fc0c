"""Deformable mixer (DeMT, arXiv 2301.03461, section 3.2): mixes channels, then samples where the task wants to look.

A layer is [1x1 conv, GELU, norm], then residually [deformable 1x1 conv, GELU, norm]. A deformable convolution with
1x1 weights is bilinear sampling at learned offsets followed by a 1x1 convolution, so that `grid_sample` computes it
on any device and in any dtype.

Offsets are pairs (right, down) in grid cells. All channels of a place are sampled at one of its own, or each channel at
another, as in the published code of DeMT and of DeGMix, its successor.

Legend: B images, C channels, h x w grid, Q maps that are sampled at offsets of their own.
"""

from __future__ import annotations

from typing import Iterator, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.layers import LayerNorm2d

Offsets = Literal["shared", "channel"]

WINDOW = 9  # cells of a 3x3 convolution


class ChannelOffsets(nn.Module):
    """A pair of offsets for each channel, `[B, 2 C, h, w]`, in fp32 at least.

        offset = W_2 * (position + W_1 * x)        3x3 convolutions, to 18 maps and from there to 2 C

    The 18 positions of a cell are the rows of its 3x3 window, counted from 1, and then the columns. W_2 has two groups:
    the first half of the channels is moved, both ways, by rows, the second half by columns. W_1 starts at zero and W_2
    does not: at first a channel looks where a random affine map takes the row, or the column, of its cell.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Conv2d(channels, 2 * WINDOW, 3, padding=1)
        self.spread = nn.Conv2d(2 * WINDOW, 2 * channels, 3, padding=1, groups=2)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x_BChw: Tensor) -> Tensor:
        # bf16 counts rows up to 256 only.
        shift_B18hw = self.shift(x_BChw).to(torch.promote_types(x_BChw.dtype, torch.float32))
        weight, bias = (parameter.to(shift_B18hw.dtype) for parameter in (self.spread.weight, self.spread.bias))
        return F.conv2d(_window_positions(shift_B18hw) + shift_B18hw, weight, bias, padding=1, groups=2)


def _window_positions(like: Tensor) -> Tensor:
    """`[18, h, w]` on the grid of `like`: of each cell the rows of its window, and then its columns."""
    h, w = like.shape[-2:]

    def near(size: int) -> Tensor:
        """`[3, size]`: the cells before, at and after each."""
        cell, side = (torch.arange(*ends, dtype=like.dtype, device=like.device) for ends in ((1, size + 1), (-1, 2)))
        return side[:, None] + cell

    row_33hw = near(h)[:, None, :, None].expand(3, 3, h, w)
    column_33hw = near(w)[None, :, None, :].expand(3, 3, h, w)
    return torch.cat([row_33hw.flatten(0, 1), column_33hw.flatten(0, 1)])


class DeformableConv1x1(nn.Module):
    """Samples `x_BChw` at learned offsets, then mixes channels. Outside the grid is 0."""

    def __init__(self, channels: int, offsets: Offsets = "shared"):
        super().__init__()
        self.together = 1 if offsets == "channel" else channels  # channels that are sampled at the same place
        self.offset = ChannelOffsets(channels) if offsets == "channel" else nn.Conv2d(channels, 2, 1)
        self.mix = nn.Conv2d(channels, channels, 1)
        if offsets == "shared":
            nn.init.zeros_(self.offset.weight)  # starts as the plain 1x1 convolution
            nn.init.zeros_(self.offset.bias)

    def forward(self, x_BChw: Tensor) -> Tensor:
        h, w = x_BChw.shape[-2:]
        # bf16 resolves an offset to 1/2 cell only at 128 cells; positions are fp32 at least.
        offset_B2hw = self.offset(x_BChw).to(torch.promote_types(x_BChw.dtype, torch.float32))
        offset_Q2hw = offset_B2hw.reshape(-1, 2, h, w)
        rows_h = torch.arange(h, device=x_BChw.device, dtype=offset_Q2hw.dtype)
        columns_w = torch.arange(w, device=x_BChw.device, dtype=offset_Q2hw.dtype)
        # grid_sample without align_corners puts the centre of cell i at (2 i + 1) / size - 1.
        x_Qhw = (2 * (columns_w + offset_Q2hw[:, 0]) + 1) / w - 1
        y_Qhw = (2 * (rows_h[:, None] + offset_Q2hw[:, 1]) + 1) / h - 1
        grid_Qhw2 = torch.stack([x_Qhw, y_Qhw], dim=-1)
        maps_Qhw = x_BChw.reshape(-1, self.together, h, w).to(grid_Qhw2.dtype)
        sampled = F.grid_sample(maps_Qhw, grid_Qhw2, mode="bilinear", align_corners=False)
        return self.mix(sampled.reshape(x_BChw.shape).to(x_BChw.dtype))


class MixerLayer(nn.Module):
    def __init__(self, channels: int, offsets: Offsets = "shared"):
        super().__init__()
        self.mix, self.mix_norm = nn.Conv2d(channels, channels, 1), LayerNorm2d(channels)
        self.deform, self.deform_norm = DeformableConv1x1(channels, offsets), LayerNorm2d(channels)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: all."""
        return self.parameters()

    def forward(self, x_BChw: Tensor) -> Tensor:
        x_BChw = self.mix_norm(F.gelu(self.mix(x_BChw)))
        return x_BChw + self.deform_norm(F.gelu(self.deform(x_BChw)))


def deformable_mixer(channels: int, depth: int, offsets: Offsets = "shared") -> nn.Module:
    """`depth` mixer layers, `x_BChw -> x_BChw`."""
    return nn.Sequential(*(MixerLayer(channels, offsets) for _ in range(depth)))
