"""Depth in metres. Loss: L1 over pixels with a depth. Metric: RMSE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.metrics.meters import DepthMeter
from fgmoe_dist.tasks.base import Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class Depth(Task):
    name, title, channels, headline, lower_is_better = "depth", "depth", 1, "rmse", True
    headline_scale = 100.0  # an error of a metre is as bad as the field has seen

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        return mean_over_valid((prediction_BKHW[:, 0] - target_BHW).abs(), target_BHW > 0)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        # No depth lies behind the camera; the metric would raise it to 1e-9 anyway.
        return prediction_KHW[0].float().clamp(min=0).cpu().numpy()

    def meter(self) -> DepthMeter:
        return DepthMeter()
