"""The oracle: one expert after the other, readable, any kind, dtype and device. Legend: kernels/__init__.py."""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from fgmoe_dist.experts.kinds.base import Kind


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


def by_image(kind: Kind, x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: NamedTuple) -> Tensor:
    """The same where experts read neighbours: the rows are whole images of the grid of `kind`, and all rows of one have
    the same experts and gates.
    """
    tokens, channels = math.prod(kind.grid_hw), x_MC.shape[1]

    def forward(x_IX: Tensor, *weights: Tensor) -> Tensor:
        return kind.forward(x_IX.unflatten(1, (tokens, channels)), *weights).flatten(1)

    images = x_MC.shape[0] // tokens  # `len` would be a constant in an exported model
    x_IX = x_MC.reshape(images, tokens * channels)
    return reference(forward, x_IX, weight_MK[::tokens], expert_MK[::tokens], bank).view_as(x_MC)
