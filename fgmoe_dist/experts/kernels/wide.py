"""All experts of a rank side by side as one, each row's gates between: for experts of few hidden units.

    y = ((x [A_1 A_2 ...]) * gates) [B_1; B_2; ...]

Two products and no gather, at the price of computing experts that nobody chose. Kinds without nonlinearity or bias.

Legend: kernels/__init__.py; R rank of an expert, X = E R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgmoe_dist.experts.kinds.lora import LoRAWeights


def wide(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: LoRAWeights) -> Tensor:
    experts, _, rank = bank.a_ECR.shape
    place_MK = torch.where(expert_MK < 0, experts, expert_MK).long()  # empty slots into a column that is cut off
    gate_ME = weight_MK.new_zeros(len(x_MC), experts + 1).scatter_add(1, place_MK, weight_MK)[:, :experts]
    hidden_MX = x_MC @ bank.a_ECR.movedim(0, 1).flatten(1)
    gate_MX = gate_ME.to(hidden_MX.dtype).repeat_interleave(rank, dim=1)
    return (hidden_MX * gate_MX) @ bank.b_ERC.flatten(0, 1)
