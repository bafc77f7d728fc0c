"""Boundaries: one logit a pixel.

Loss: binary cross entropy with weight w on boundary pixels and 1 - w elsewhere. Metric: odsF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.metrics.meters import BoundaryMeter
from fgmoe_dist.tasks.base import IGNORE, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class Edge(Task):
    name, title, channels, headline = "edge", "boundaries", 1, "odsF"

    def __init__(self, positive_weight: float, max_dist: float):
        """`max_dist`: matching radius of the metric as a share of the image diagonal."""
        self.positive_weight, self.max_dist = positive_weight, max_dist

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        valid_BHW = target_BHW != IGNORE
        label_BHW = (target_BHW == 1).to(prediction_BKHW)
        loss_BHW = F.binary_cross_entropy_with_logits(prediction_BKHW[:, 0], label_BHW, reduction="none")
        weight_BHW = torch.where(target_BHW == 1, self.positive_weight, 1 - self.positive_weight)
        return mean_over_valid(weight_BHW * loss_BHW, valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return (255 * prediction_KHW[0].float().sigmoid()).cpu().numpy().astype(np.uint8)

    def meter(self) -> BoundaryMeter:
        return BoundaryMeter(self.max_dist)
