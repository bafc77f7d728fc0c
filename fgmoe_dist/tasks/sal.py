"""Saliency: foreground or background, two logits a pixel.

Loss: cross entropy with weights [1 - w, w], w the share of background among the labelled pixels. Metric: maxF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.metrics.meters import SaliencyMeter
from fgmoe_dist.tasks.base import IGNORE, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class Saliency(Task):
    name, title, channels, headline = "sal", "saliency", 2, "maxF"

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        valid_BHW = target_BHW != IGNORE
        background_share = (target_BHW == 0).sum() / valid_BHW.sum().clamp(min=1)
        weight_K = torch.stack([1 - background_share, background_share]).to(prediction_BKHW)
        loss_BHW = F.cross_entropy(prediction_BKHW, target_BHW, weight=weight_K, ignore_index=IGNORE, reduction="none")
        return mean_over_valid(loss_BHW, valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return (255 * prediction_KHW.float().softmax(0)[1]).cpu().numpy().astype(np.uint8)

    def meter(self) -> SaliencyMeter:
        return SaliencyMeter()
