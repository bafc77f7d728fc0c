"""The oracle: one expert after the other, readable, any kind, dtype and device. Legend: kernels/__init__.py."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor


def reference(
    forward: Callable[..., Tensor], x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: NamedTuple
) -> Tensor:
    """`forward(x, *weights)` is the formula of one expert of the bank's kind (`Kind.forward`)."""
    y_MC = torch.zeros_like(x_MC)
    for e, weights in enumerate(zip(*(stack.unbind(0) for stack in bank))):
        row_R, slot_R = (expert_MK == e).nonzero(as_tuple=True)
        # An expert without rows multiplies empty matrices, so that its gradient is zero and not missing.
        out_RC = forward(x_MC[row_R], *weights)
        y_MC = y_MC.index_add(0, row_R, out_RC * weight_MK[row_R, slot_R, None].to(out_RC.dtype))
    return y_MC
