"""A task as someone outside of the package would write it: the share of red, green and blue that a surface throws back.

It leans on none of the general tasks. Registered by one line, `TASKS["albedo"] = Albedo`.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.drawing import columns
from fgmoe_dist.labels import VectorMap
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.metrics.vectors import VectorConstant, VectorMeter
from fgmoe_dist.tasks.base import Task, mean_over_valid


class Albedo(Task):
    label, name, title, channels = VectorMap(3), "albedo", "albedo", 3
    headline, lower_is_better, headline_scale = "rmse", True, 100.0

    def loss(self, prediction_BKHW, target_BKHW):
        valid_BHW = ~target_BKHW.isnan().any(dim=1)
        error_BKHW = prediction_BKHW.sigmoid() - target_BKHW.nan_to_num(0.0)
        return mean_over_valid(error_BKHW.square().mean(1), valid_BHW)

    def predict(self, prediction_KHW) -> np.ndarray:
        return prediction_KHW.float().sigmoid().permute(1, 2, 0).cpu().numpy()

    def meter(self) -> Meter:
        return VectorMeter(self.name, self.channels)

    def baseline(self) -> VectorConstant:
        return VectorConstant(self.meter())

    def column(self, predictions, truths) -> columns.Column:
        return columns.colours(self.title, 0.0, 1.0, predictions, truths)
