"""The MLP of DeepSeekMoE (arXiv 2401.06066): `FFN(x) = GELU(x w_in + b_in) w_out + b_out`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fgmoe_dist.experts.kinds.base import Kind, affine


class FFNWeights(NamedTuple):
    """E experts of hidden size H side by side."""

    w_in_ECH: Tensor
    b_in_EH: Tensor
    w_out_EHC: Tensor
    b_out_EC: Tensor


class FFN(Kind):
    Weights = FFNWeights
    inner, unit = 2, "H"
    kept_units = 2  # before the GELU and after it

    def draw(self, channels: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "w_in_ECH": torch.empty(channels, hidden).normal_(std=(1 / channels) ** 0.5, generator=generator),
            "b_in_EH": torch.zeros(hidden),
            # Small at first, so that a block starts near the identity.
            "w_out_EHC": torch.empty(hidden, channels).normal_(std=0.5 * (1 / hidden) ** 0.5, generator=generator),
            "b_out_EC": torch.zeros(channels),
        }

    def hidden(self, x: Tensor, w_in: Tensor, b_in: Tensor) -> Tensor:
        return F.gelu(affine(x, w_in, b_in))
