"""The low-rank convolution of MLoRE's experts (CVPR 2024, arXiv 2403.17749): `E(x) = M (W * x + b_in) + b_out`.

W is a 3x3 convolution from C channels to R, the grid's border padded with zeros; M is linear. Nothing is between them,
so that an expert is one convolution of low rank. It reads neighbours, so all tokens of an image have to come to it: the
router has to be `image`. First weights as in MLoRE: uniform within 1 / sqrt(fan-in), biases 0.

Its rank is what the settings call hidden size. Legend: D = 9 C, a channel's 3x3 neighbours beside each other.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fgmoe_dist.experts.kinds.base import Kind

WINDOW = 3


class ConvLoRAWeights(NamedTuple):
    """E experts of rank R side by side."""

    w_in_EDR: Tensor
    b_in_ER: Tensor
    w_out_ERC: Tensor
    b_out_EC: Tensor


class ConvLoRA(Kind):
    Weights = ConvLoRAWeights
    inner, unit = 2, "R"
    kept_units = 1
    alone = False

    def on(self, grid_hw: Sequence[int]) -> Kind:
        placed = copy.copy(self)
        placed.grid_hw = tuple(grid_hw)
        return placed

    def draw(self, channels: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
        shapes, first = self.shapes(channels, hidden), {}
        for name, shape in shapes.items():
            bound = shape[0] ** -0.5 if len(shape) > 1 else 0.0
            first[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return first

    def hidden(self, x: Tensor, w_in: Tensor, b_in: Tensor) -> Tensor:
        """Of `x [..., C]`, whose rows are those of whole images one after the other."""
        grid_hw, rank = self.grid_hw, w_in.shape[-1]
        side_by_side = len(w_in) if w_in.dim() == 3 else 1
        maps = x.reshape(side_by_side, -1, *grid_hw, x.shape[-1])
        maps = maps.permute(1, 0, 4, 2, 3).flatten(1, 2)  # [B, E C, h, w]
        kernel = w_in.movedim(-1, -2).reshape(side_by_side * rank, x.shape[-1], WINDOW, WINDOW)
        found = F.conv2d(maps, kernel, b_in.flatten(), padding=WINDOW // 2, groups=side_by_side)
        found = found.unflatten(1, (side_by_side, rank)).permute(1, 0, 3, 4, 2)  # [E, B, h, w, R]
        return found.reshape(*x.shape[:-1], rank)

    def shapes(self, channels: int, hidden: int) -> dict[str, tuple[int, ...]]:
        wide = WINDOW**2 * channels
        return dict(zip(self.weights, ((wide, hidden), (hidden,), (hidden, channels), (channels,))))
