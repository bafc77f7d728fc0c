"""Sort the rows by expert, then one grouped GEMM a layer (`torch.nn.functional.grouped_mm`).

Fast where grouped_mm is: bf16 on a recent GPU. fp32 and bf16 only. Legend: kernels/__init__.py; R = filled slots.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def grouped(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank) -> Tensor:
    experts = bank.w_in_ECH.shape[0]
    row_R, slot_R = (expert_MK >= 0).nonzero(as_tuple=True)
    if row_R.numel() == 0:
        # grouped_mm refuses empty input; the parameters still owe the other ranks a gradient of zero.
        return x_MC * 0 + sum(stack.sum() for stack in bank) * 0 + weight_MK.sum().to(x_MC.dtype) * 0
    expert_R, order_R = expert_MK[row_R, slot_R].sort(stable=True)
    row_R, slot_R = row_R[order_R], slot_R[order_R]
    ends_E = torch.bincount(expert_R, minlength=experts).cumsum(0).to(torch.int32)
    hidden_RH = F.gelu(F.grouped_mm(x_MC[row_R], bank.w_in_ECH, offs=ends_E) + bank.b_in_EH[expert_R])
    out_RC = F.grouped_mm(hidden_RH, bank.w_out_EHC, offs=ends_E) + bank.b_out_EC[expert_R]
    return torch.zeros_like(x_MC).index_add(0, row_R, out_RC * weight_MK[row_R, slot_R, None].to(out_RC.dtype))
