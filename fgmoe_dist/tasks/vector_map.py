"""Tasks of several numbers for each pixel: free ones, as colours are, or directions, as surface normals are.

Loss: L1 summed over the channels, for directions between unit vectors. Metric: root mean square error of free vectors,
mean angle in degrees between directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fgmoe_dist.drawing import columns, figures
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import VectorMap
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.encodings import DirectionWatch, RangeWatch, Watch
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.metrics.normals import NormalsConstant, NormalsMeter
from fgmoe_dist.metrics.vectors import VectorConstant, VectorMeter
from fgmoe_dist.tasks.base import DatasetInfo, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class VectorTask(Task):
    """Free vectors.

    Args:
        name: the task's; like all the others by default the class's own.
        channels: of a vector.
        range: the ends of the scale on which channels are drawn as colours. Values may lie beyond.
        metric: the headline.
    """

    label, channels, headline, lower_is_better = VectorMap(), 3, "rmse", True
    headline_scale = 100.0  # for values from 0 to 1
    metrics = ("rmse",)  # that can be the headline
    range = (0.0, 1.0)

    def __init__(
        self,
        name: str = "",
        channels: int | None = None,
        range: tuple[float, float] | None = None,
        metric: str | None = None,
    ):
        super().__init__(name)
        self.channels = channels or type(self).channels
        if metric is not None and metric not in self.metrics:
            raise UserError(f"{self.name}: metric is {metric}; use {' or '.join(self.metrics)}")
        self.headline = metric or type(self).headline
        if range is not None:
            self.range = tuple(range)
        if self.headline == "rmse":
            self.headline_scale = 100.0 / (self.range[1] - self.range[0])

    @classmethod
    def create(cls, name: str, info: DatasetInfo, facts: Mapping[str, Any], options: Mapping[str, Any]) -> VectorTask:
        """Of directions, if the data set says that its vectors have unit length."""
        kind = DirectionTask if facts.get("unit") else cls
        return kind(name, facts.get("channels"), facts.get("range"), facts.get("metric"))

    def loss(self, prediction_BKHW: Tensor, target_BKHW: Tensor) -> Tensor:
        valid_BHW = ~target_BKHW.isnan().any(dim=1)
        # NaN marks an invalid pixel; it must not reach the subtraction, whose gradient would be NaN too.
        return mean_over_valid((prediction_BKHW - target_BKHW.nan_to_num(0.0)).abs().sum(1), valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return prediction_KHW.float().permute(1, 2, 0).cpu().numpy()

    def meter(self) -> Meter:
        return VectorMeter(self.name, self.channels)

    def baseline(self) -> ConstantBaseline | None:
        return VectorConstant(VectorMeter(self.name, self.channels))

    def watch(self) -> Watch | None:
        return RangeWatch(*self.range)

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        return columns.colours(self.title, *self.range, predictions, truths)


class DirectionTask(VectorTask):
    """Unit vectors, and whatever the network gives is brought to length one."""

    label, headline, headline_scale = VectorMap(3, unit=True), "mean", 2.0  # 50 degrees is what a constant scores
    metrics = ("mean", "rmse")
    range = (-1.0, 1.0)

    def loss(self, prediction_BKHW: Tensor, target_BKHW: Tensor) -> Tensor:
        from torch.nn import functional as F

        return super().loss(F.normalize(prediction_BKHW, dim=1), target_BKHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        from torch.nn import functional as F

        return super().predict(F.normalize(prediction_KHW.float(), dim=0))

    def meter(self) -> Meter:
        return NormalsMeter(self.name) if self.headline == "mean" else super().meter()

    def baseline(self) -> ConstantBaseline | None:
        """The direction with the least mean angle is looked for in space: of another dimension there is none."""
        if self.headline == "rmse":
            return super().baseline()
        return NormalsConstant(NormalsMeter(self.name)) if self.channels == 3 else None

    def watch(self) -> Watch | None:
        return DirectionWatch() if self.channels == 3 else None

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        if self.channels != 3:
            return super().column(predictions, truths)
        return columns.directions(self.title, predictions, truths)

    def figures(self, meter: Meter) -> list[figures.Figure]:
        if self.headline == "rmse":
            return []
        scores = meter.compute()
        marks = [(limit, scores[f"within_{limit:g}"]) for limit in meter.WITHIN]
        return [figures.angles_within(*meter.cumulative(), marks)]

    def read(self, saved: np.ndarray, name: str) -> np.ndarray:
        """Unit vectors. The meter brings any length to one and would not notice colours that nobody decoded."""
        if saved.dtype in (np.uint8, np.uint16):
            return saved.astype(np.float32) * np.float32(2 / np.iinfo(saved.dtype).max) - 1
        if np.issubdtype(saved.dtype, np.floating) and (largest := np.abs(saved).max(initial=0)) > 1.01:
            raise UserError(
                f"{name} has components up to {largest:.3g}; save unit vectors, or uint8 RGB with n = 2x/255 - 1"
            )
        return saved
