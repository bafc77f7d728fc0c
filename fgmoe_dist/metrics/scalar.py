"""One number per pixel, in any unit and of any sign: its errors, and the best constant.

Depth in metres has a meter of its own, with the field's conventions (`depth`). Shapes: H x W pixels, P valid pixels.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import NAN, Meter, Metrics, check_prediction


class ScalarMeter(Meter):
    """Errors pooled over the pixels whose truth is finite; a NaN in the label marks a pixel without one.

    `rmse` and `mae` are in the label's own unit; `abs_rel` is the mean of |p - g| / |g| over the pixels with g not 0.
    """

    METRICS = ("rmse", "mae", "abs_rel")

    def __init__(self, task: str, image_metric: str = "rmse"):
        assert image_metric in self.METRICS, image_metric
        super().__init__(task, 5)  # pixels, sums of squares and of magnitudes; pixels with g != 0, sum of |p - g| / |g|
        self.image_metric = image_metric

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, "float32 values")
        valid = np.isfinite(label)
        g_P = label[valid].astype(np.float64)
        error_P = prediction[valid].astype(np.float64) - g_P
        relative = np.abs(error_P[g_P != 0] / g_P[g_P != 0])
        self._sums += [len(g_P), (error_P**2).sum(), np.abs(error_P).sum(), len(relative), relative.sum()]

    def compute(self) -> Metrics:
        pixels, square, magnitude, nonzero, relative = self._sums
        if pixels == 0:
            return dict.fromkeys(self._order(), NAN)
        values = {
            "rmse": float((square / pixels) ** 0.5),
            "mae": float(magnitude / pixels),
            "abs_rel": float(relative / nonzero) if nonzero else NAN,
        }
        return {name: values[name] for name in self._order()}

    def _order(self) -> list[str]:
        return sorted(self.METRICS, key=lambda name: name != self.image_metric)


class ScalarConstant(ConstantBaseline):
    """The mean, which has the lowest rmse. That alone is told: the other errors would need every value again."""

    def __init__(self, meter: ScalarMeter):
        super().__init__(meter, 3)  # pixels, sums of g and g^2

    def _add(self, label: np.ndarray) -> None:
        g_P = label[np.isfinite(label)].astype(np.float64)
        self._sums += [len(g_P), g_P.sum(), (g_P**2).sum()]

    def compute(self) -> Metrics:
        return {"rmse": super().compute()["rmse"]}

    def _fill(self, meter: Meter) -> None:
        pixels, total, square = self._sums
        meter.merge(np.array([pixels, max(square - total**2 / pixels, 0.0), 0, 0, 0]))
