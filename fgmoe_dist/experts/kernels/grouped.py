"""Sort the slots by expert, then one grouped GEMM per layer (`torch.nn.functional.grouped_mm`).

Fast where grouped_mm is: bf16 on a recent GPU. fp32 and bf16 only. No size depends on the routing, so that the host
never waits for the device: empty slots are sorted behind the last expert's, where grouped_mm computes nothing. Beyond
1023 experts on a rank, which is what one call takes on a GPU, it waits once a layer.

Legend: kernels/__init__.py; S = M * K slots in the order of their experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fgmoe_dist.experts.kinds.ffn import FFNWeights

AFTER = (0, 0, 0, 1)  # one row more
MOST_GROUPS = 1023  # of one call on a GPU


def grouped(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: FFNWeights) -> Tensor:
    experts, rows, slots = len(bank.w_in_ECH), *expert_MK.shape
    if rows == 0:  # which grouped_mm refuses: one row of empty slots
        x_MC, weight_MK, expert_MK = F.pad(x_MC, AFTER), F.pad(weight_MK, AFTER), F.pad(expert_MK, AFTER, value=-1)
    key_S = expert_MK.flatten()
    expert_S, order_S = key_S.masked_fill(key_S < 0, experts).sort(stable=True)
    bounds_E = torch.arange(experts, dtype=expert_S.dtype, device=expert_S.device)
    ends_E = torch.searchsorted(expert_S, bounds_E, right=True, out_int32=True)
    empty_S1 = (expert_S == experts)[:, None]
    expert_S = expert_S.clamp(max=experts - 1)

    # Beyond the last expert's rows grouped_mm leaves memory as it was, in its results and in its gradients: every
    # value that goes in or comes out is masked there.
    x_SC = x_MC[order_S // slots].masked_fill(empty_S1, 0)
    before_SH = _product(x_SC, bank.w_in_ECH, ends_E) + bank.b_in_EH[expert_S]
    hidden_SH = F.gelu(before_SH.masked_fill(empty_S1, 0))
    out_SC = _product(hidden_SH, bank.w_out_EHC, ends_E) + bank.b_out_EC[expert_S]
    out_SC = out_SC.masked_fill(empty_S1, 0) * weight_MK.flatten()[order_S, None].to(out_SC.dtype)
    # Back to their slots, and a token's slots added up in their order: index_add has none on a GPU.
    y_MC = torch.zeros_like(out_SC).index_copy(0, order_S, out_SC).view(-1, slots, out_SC.shape[1]).sum(1)
    return y_MC[:rows]


def _product(x_SC: Tensor, bank_ECH: Tensor, ends_E: Tensor) -> Tensor:
    """Each expert's rows, which end at `ends_E`, times its matrix."""
    experts = len(bank_ECH)
    if experts <= MOST_GROUPS:
        return F.grouped_mm(x_SC, bank_ECH, offs=ends_E)
    pieces, start = [], 0
    for first in range(0, experts, MOST_GROUPS):
        piece = slice(first, first + MOST_GROUPS)
        stop = len(x_SC) if piece.stop >= experts else int(ends_E[piece.stop - 1])
        if stop > start:  # no rows: grouped_mm refuses them
            pieces.append(F.grouped_mm(x_SC[start:stop], bank_ECH[piece], offs=ends_E[piece] - start))
        start = stop
    return torch.cat(pieces)
