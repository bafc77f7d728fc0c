"""How much each routed expert is used on a set of images (SEER-MoE, arXiv 2404.05089, "heavy hitters").

    hard    slots that chose the expert
    soft    sum of the gates that it was chosen with: with the default router its softmax probabilities

Legend: L blocks, T tasks, E routed experts of a task, N tokens of it, K selected, X = N K.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fgmoe_dist.experts.routers import Router, Routing
from fgmoe_dist.model import Model


class Usage(NamedTuple):
    """`hard_LTE` and `soft_LTE`, float64, and the images that were seen."""

    hard_LTE: Tensor
    soft_LTE: Tensor
    images: int


def count_usage(model: Model, images: Iterable[Tensor]) -> Usage:
    """Sends normalised images `[3, H, W]` through the model, one at a time, and counts what its routers choose."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hard_LTE, soft_LTE = torch.zeros(2, len(routers), routers[0].tasks, routers[0].config.routed, dtype=torch.float64)
    seen = 0

    def note(block: int):
        def hook(_module, _inputs, routing: Routing) -> None:
            chosen_TX, gate_TX = routing.expert_TNK.flatten(1).cpu(), routing.weight_TNK.flatten(1).double().cpu()
            kept_TX = (chosen_TX >= 0).double()  # a slot that found its expert full goes nowhere
            hard_LTE[block].scatter_add_(1, chosen_TX.clamp(min=0), kept_TX)
            soft_LTE[block].scatter_add_(1, chosen_TX.clamp(min=0), kept_TX * gate_TX)

        return hook

    handles = [router.register_forward_hook(note(block)) for block, router in enumerate(routers)]
    try:
        with torch.inference_mode():
            for image_3HW in images:
                model(image_3HW[None].to(next(model.parameters()).device))
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    return Usage(hard_LTE, soft_LTE, seen)
