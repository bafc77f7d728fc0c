"""Depth in metres: the field's errors, and the best constant depth.

Shapes: H x W pixels, P valid pixels, N bins of a histogram.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import NAN, Meter, check_prediction


class DepthMeter(Meter):
    """Depth errors pooled over the pixels with 0 < truth < 80 m; predictions below 1e-9 m count as that.

    `rmse` and `abs_rel` = |p - g| / g, `sq_rel` = (p - g)^2 / g, `log_rmse` in natural logarithms, `delta1..3` the
    percentage with max(p / g, g / p) < 1.25, 1.25^2, 1.25^3.
    """

    MAX_METRES, LEAST_METRES = 80.0, 1e-9
    image_metric = "rmse"
    METRICS = ("rmse", "log_rmse", "abs_rel", "sq_rel", "delta1", "delta2", "delta3")

    def __init__(self, task: str = "depth"):
        super().__init__(task, 8)

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, "float32 metres")
        valid = (label > 0) & (label < self.MAX_METRES)
        g = label[valid].astype(np.float64)
        p = np.maximum(prediction[valid].astype(np.float64), self.LEAST_METRES)
        error, ratio = p - g, np.maximum(p / g, g / p)
        sums = [(error**2).sum(), (np.log(p / g) ** 2).sum(), (abs(error) / g).sum(), (error**2 / g).sum()]
        self._sums += [len(g), *sums, *(np.count_nonzero(ratio < 1.25**k) for k in (1, 2, 3))]

    def compute(self) -> dict[str, float]:
        pixels, *sums = self._sums
        if pixels == 0:
            return dict.fromkeys(self.METRICS, NAN)
        square, log_square, relative, square_relative, *within = (float(s / pixels) for s in sums)
        values = (square**0.5, log_square**0.5, relative, square_relative, *(100 * w for w in within))
        return dict(zip(self.METRICS, values))


class DepthConstant(ConstantBaseline):
    """The mean depth, which has the lowest rmse.

    Exact for rmse, log_rmse and sq_rel; abs_rel and the deltas read a histogram of 1 cm bins, linear inside a bin.
    """

    BINS = 8000

    def __init__(self, meter: DepthMeter):
        # pixels, sums of g, g^2, log g, log^2 g, 1/g; then count and sum of 1/g by bin
        super().__init__(meter, 6 + 2 * self.BINS)

    def _add(self, label: np.ndarray) -> None:
        g = label[(label > 0) & (label < DepthMeter.MAX_METRES)].astype(np.float64)
        log, inverse = np.log(g), 1 / g
        bin_P = (g * (self.BINS / DepthMeter.MAX_METRES)).astype(np.int64)
        self._sums[:6] += [len(g), g.sum(), (g**2).sum(), log.sum(), (log**2).sum(), inverse.sum()]
        self._sums[6:] += np.concatenate(
            [np.bincount(bin_P, minlength=self.BINS), np.bincount(bin_P, weights=inverse, minlength=self.BINS)]
        )

    def _constant(self) -> float:
        return float(self._sums[1] / self._sums[0])

    def _below(self, depth: float) -> tuple[float, float]:
        """(pixels, sum of 1/g) over depths below `depth`."""
        edge_N = np.linspace(0, DepthMeter.MAX_METRES, self.BINS + 1)
        count_N, inverse_N = self._sums[6:].reshape(2, self.BINS)
        return tuple(float(np.interp(depth, edge_N, np.concatenate([[0], np.cumsum(v)]))) for v in (count_N, inverse_N))

    def _fill(self, meter: Meter) -> None:
        n, g, g2, log, log2, inverse = self._sums[:6]
        c = self._constant()
        nearer, nearer_inverse = self._below(c)
        # |c - g| / g is c/g - 1 for the nearer pixels and 1 - c/g for the farther ones
        relative = c * (2 * nearer_inverse - inverse) + n - 2 * nearer
        log_c = np.log(c)
        squares = [n * c**2 - 2 * c * g + g2, n * log_c**2 - 2 * log_c * log + log2]
        within = [self._below(c * 1.25**k)[0] - self._below(c / 1.25**k)[0] for k in (1, 2, 3)]
        sums = [*squares, relative, c**2 * inverse - 2 * c * n + g]
        meter.merge(np.array([n, *(max(s, 0.0) for s in sums), *within]))
