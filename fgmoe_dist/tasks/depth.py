"""Depth in metres. Loss: L1 over pixels with a depth. Metric: RMSE, with the field's conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fgmoe_dist.drawing import columns
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import ScalarMap
from fgmoe_dist.metrics.depth import DepthConstant, DepthMeter
from fgmoe_dist.metrics.encodings import RatioWatch
from fgmoe_dist.tasks.scalar_map import ScalarTask

if TYPE_CHECKING:
    from torch import Tensor


class Depth(ScalarTask):
    name, title, unit, headline = "depth", "depth", "m", "rmse"
    label = ScalarMap("metres", scales="inverse", positive=True)
    headline_scale = 100.0  # an error of a metre is as bad as the field has seen
    finest_tick = 0.01
    NEAREST_METRES = 0.02  # no camera's scenes are all nearer

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        # No depth lies behind the camera; the metric would raise it to 1e-9 anyway.
        return prediction_KHW[0].float().clamp(min=0).cpu().numpy()

    def meter(self) -> DepthMeter:
        return DepthMeter()

    def baseline(self) -> DepthConstant:
        return DepthConstant(self.meter())

    def watch(self) -> RatioWatch:
        return RatioWatch()

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        # 0 is "no depth" in a label only; predicted, it is a value and must show.
        return super().column([None if depth is None else np.maximum(depth, 1e-6) for depth in predictions], truths)

    def doubt_labels(self, found: Mapping[str, Any]) -> str | None:
        """The median tells another unit from a far horizon and from a few wild pixels."""
        if (nothing := super().doubt_labels(found)) is not None:
            return nothing
        median, high = found["median"], found["high"]
        if median > DepthMeter.MAX_METRES:
            return (
                f"half of all depths are beyond {median:.4g} m, mean {found['mean']:.4g} m: are the files in "
                "millimetres? Give their unit (unit: 0.001), or save metres"
            )
        if high < self.NEAREST_METRES:
            return f"no depth is beyond {high:.4g} m: are the files in metres already? Correct their unit"
        return None

    def read(self, saved: np.ndarray, name: str) -> np.ndarray:
        """Metres. The median tells another unit from a few wild pixels, which are scored."""
        floating = np.issubdtype(saved.dtype, np.floating) and saved.size
        if floating and (median := float(np.median(saved))) > DepthMeter.MAX_METRES:
            raise UserError(f"{name} is {median:.3g} m at the median; save metres, not another unit")
        return saved
