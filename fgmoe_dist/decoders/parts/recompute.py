"""Blocks whose activations are computed again in the backward pass, and not kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """What the block makes of `inputs`; with `recompute`, nothing in between is kept where gradients are on."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
