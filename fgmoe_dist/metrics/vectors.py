"""Several numbers per pixel, as colours are: their root mean square error, and the best constant.

Directions have a meter of their own (`normals`). Shapes: H x W pixels, P valid pixels, C channels.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import NAN, Meter, Metrics, check_prediction


class VectorMeter(Meter):
    """`rmse` and `mae` over all channels of the pixels with a truth; NaN in any channel marks a pixel without one."""

    image_metric = "rmse"

    def __init__(self, task: str, channels: int):
        super().__init__(task, 3)  # values (pixels times channels), sums of squares and of magnitudes
        self.channels = channels

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, f"float32 [H, W, {self.channels}]")
        valid = ~np.isnan(label).any(axis=-1)
        error_PC = prediction[valid].astype(np.float64) - label[valid].astype(np.float64)
        self._sums += [error_PC.size, (error_PC**2).sum(), np.abs(error_PC).sum()]

    def compute(self) -> Metrics:
        values, square, magnitude = self._sums
        if values == 0:
            return {"rmse": NAN, "mae": NAN}
        return {"rmse": float((square / values) ** 0.5), "mae": float(magnitude / values)}


class VectorConstant(ConstantBaseline):
    """The mean vector, which has the lowest rmse. That alone is told: mae would need every value again."""

    def __init__(self, meter: VectorMeter):
        super().__init__(meter, 2 + meter.channels)  # pixels, sum of all squares, then each channel's sum

    def _add(self, label: np.ndarray) -> None:
        g_PC = label[~np.isnan(label).any(axis=-1)].astype(np.float64)
        self._sums += [len(g_PC), (g_PC**2).sum(), *g_PC.sum(0)]

    def compute(self) -> Metrics:
        return {"rmse": super().compute()["rmse"]}

    def _fill(self, meter: Meter) -> None:
        pixels, square, *totals = self._sums
        error = square - sum(total**2 for total in totals) / pixels
        meter.merge(np.array([pixels * len(totals), max(error, 0.0), 0]))
