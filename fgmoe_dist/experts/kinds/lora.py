"""The low-rank expert of LoRA mixtures (arXiv 2510.00570): `E(x) = B A x`, without nonlinearity or bias.

Its rank is what the settings call hidden size. As in LoRA (arXiv 2106.09685) B starts at zero and the scale is 1: at
first an expert adds nothing, and only B has a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgmoe_dist.experts.kinds.base import Kind, affine


class LoRAWeights(NamedTuple):
    """E experts of rank R side by side."""

    a_ECR: Tensor
    b_ERC: Tensor


class LoRA(Kind):
    Weights = LoRAWeights
    inner, unit = 1, "R"
    kept_units = 1

    def draw(self, channels: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "a_ECR": torch.empty(channels, hidden).normal_(std=(1 / channels) ** 0.5, generator=generator),
            "b_ERC": torch.zeros(hidden, channels),
        }

    def hidden(self, x: Tensor, a: Tensor) -> Tensor:
        return affine(x, a)
