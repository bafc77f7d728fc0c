"""Tasks of one number for each pixel, in any unit: temperature, height, disparity.

Loss: L1 over labelled pixels. Metric: rmse, mae or abs_rel, as the data set says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fgmoe_dist.drawing import columns
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import ScalarMap
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.metrics.scalar import ScalarConstant, ScalarMeter
from fgmoe_dist.tasks.base import DatasetInfo, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class ScalarTask(Task):
    """
    Args:
        name: the task's; like all the others by default the class's own.
        unit: the values', in words; empty if they have none.
        metric: the headline, one of the meter's.
    """

    label, channels, headline, lower_is_better = ScalarMap(), 1, "rmse", True
    finest_tick = 0.0  # of the colour scale, in `unit`

    def __init__(self, name: str = "", unit: str | None = None, metric: str | None = None):
        super().__init__(name)
        self.unit = type(self).unit if unit is None else unit
        self.headline = metric or type(self).headline
        if metric is not None and metric not in ScalarMeter.METRICS:
            raise UserError(f"{name}: metric is {metric}; use one of {', '.join(ScalarMeter.METRICS)}")
        if metric == "abs_rel":
            self.headline_scale = 100.0  # a share

    @classmethod
    def create(cls, name: str, info: DatasetInfo, facts: Mapping[str, Any], options: Mapping[str, Any]) -> ScalarTask:
        return cls(name, facts.get("unit"), facts.get("metric"))

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        valid_BHW = self.label.valid(target_BHW)
        # NaN must not reach the subtraction, whose gradient would be NaN too.
        return mean_over_valid((prediction_BKHW[:, 0] - target_BHW.where(valid_BHW, 0)).abs(), valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return prediction_KHW[0].float().cpu().numpy()

    def meter(self) -> Meter:
        return ScalarMeter(self.name, self.headline)

    def baseline(self) -> ScalarConstant | None:
        """The mean, which is the best constant by rmse only."""
        return ScalarConstant(self.meter()) if self.headline == "rmse" else None

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        return columns.scalar(self.title, self.unit, self.label.valid, predictions, truths, self.finest_tick)

    def unit_of(self, metric: str) -> str:
        return self.unit if metric in ("rmse", "mae") else ""
