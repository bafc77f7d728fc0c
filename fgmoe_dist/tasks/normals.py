"""Surface normals. Loss: L1 between unit vectors, summed over the three axes. Metric: mean angle in degrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.metrics.meters import NormalsMeter
from fgmoe_dist.tasks.base import Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class Normals(Task):
    name, title, channels, headline, lower_is_better = "normals", "surface normals", 3, "mean", True
    headline_scale = 2.0  # 50 degrees is what a constant scores

    def loss(self, prediction_BKHW: Tensor, target_BKHW: Tensor) -> Tensor:
        from torch.nn import functional as F

        unit_BKHW = F.normalize(prediction_BKHW, dim=1)
        valid_BHW = ~target_BKHW.isnan().any(dim=1)
        # NaN marks an invalid pixel; it must not reach the subtraction, whose gradient would be NaN too.
        return mean_over_valid((unit_BKHW - target_BKHW.nan_to_num(0.0)).abs().sum(1), valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        from torch.nn import functional as F

        return F.normalize(prediction_KHW.float(), dim=0).permute(1, 2, 0).cpu().numpy()

    def meter(self) -> NormalsMeter:
        return NormalsMeter()
