"""Directions: angles between unit vectors, and the best constant direction.

Angles in degrees. Shapes: H x W pixels, P valid pixels, N cells of the sphere; 3 is x, y, z.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import NAN, Meter, check_prediction


class NormalsMeter(Meter):
    """Angles between predicted and true normals in degrees, pooled over the pixels that have a normal (not NaN).

    The angle is 2 atan2(|p - g|, |p + g|) of the renormalised vectors, stable near 0 and 180 where arccos is not; a
    zero vector is 90 degrees from everything. `median` is within 0.005 degrees of the exact one: it is the middle of
    one of 18000 bins (of two, averaged, for an even count). `within_X` is the percentage with an angle < X.
    """

    image_metric = "mean"
    WITHIN = (11.25, 22.5, 30.0)
    METRICS = ("mean", "median", "within_11.25", "within_22.5", "within_30")
    BINS = 18000

    def __init__(self, task: str = "normals"):
        super().__init__(task, 1 + len(self.WITHIN) + self.BINS)

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, "float32 unit vectors")
        valid = ~np.isnan(label).any(axis=-1)
        angle_P = angles(prediction[valid].astype(np.float64), label[valid].astype(np.float64))
        self.add_angles(angle_P, np.ones_like(angle_P))

    def add_angles(self, angle_P: np.ndarray, weight_P: np.ndarray) -> None:
        """Add angles in degrees, each seen `weight` times."""
        bin_P = np.minimum((angle_P * (self.BINS / 180)).astype(np.int64), self.BINS - 1)
        self._sums[0] += (angle_P * weight_P).sum()
        self._sums[1:4] += [weight_P[angle_P < limit].sum() for limit in self.WITHIN]
        self._sums[4:] += np.bincount(bin_P, weights=weight_P, minlength=self.BINS)

    def compute(self) -> dict[str, float]:
        cumulative = self._sums[4:].cumsum()
        pixels = cumulative[-1]
        if pixels == 0:
            return dict.fromkeys(self.METRICS, NAN)
        # The two middle ranks (one and the same for an odd count), counted from 0.
        middle = np.searchsorted(cumulative, [(pixels - 1) // 2, pixels // 2], side="right")
        median = float((middle + 0.5).mean() * 180 / self.BINS)
        values = (float(self._sums[0] / pixels), median, *(100 * float(s / pixels) for s in self._sums[1:4]))
        return dict(zip(self.METRICS, values))

    def cumulative(self) -> tuple[np.ndarray, np.ndarray]:
        """(degrees 0..180, share of pixels with a smaller angle in 0..1), float64 `[BINS + 1]` each."""
        count = np.concatenate([[0.0], self._sums[4:].cumsum()])
        return np.linspace(0, 180, self.BINS + 1), count / max(count[-1], 1.0)


def angles(a_P3: np.ndarray, b_P3: np.ndarray) -> np.ndarray:
    """Degrees `[P]` between vectors of any length, float64."""
    a_P3, b_P3 = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (a_P3, b_P3))
    return np.degrees(2 * np.arctan2(np.linalg.norm(a_P3 - b_P3, axis=-1), np.linalg.norm(a_P3 + b_P3, axis=-1)))


class NormalsConstant(ConstantBaseline):
    """The direction with the lowest mean angle: the geometric median on the sphere.

    Labels go into 128 x 128 cells of the octahedral map of the sphere (about 1.4 degrees wide), each with its count
    and mean direction. The best of the overall mean and of the fullest cells is improved by Weiszfeld steps. The mean
    angle is good to a few hundredths of a degree; a single pixel's angle (median, thresholds) to half a cell.
    """

    GRID, CANDIDATES, STEPS = 128, 64, 30

    def __init__(self, meter: NormalsMeter):
        super().__init__(meter, 4 * self.GRID**2)  # count, then the summed x, y, z of each cell

    def _add(self, label: np.ndarray) -> None:
        vector_P3 = label[~np.isnan(label).any(axis=-1)].astype(np.float64)
        length_P = np.linalg.norm(vector_P3, axis=-1)
        unit_P3 = vector_P3[length_P > 0] / length_P[length_P > 0, None]
        cell_P = self._cell(unit_P3)
        weights = (None, *unit_P3.T)
        self._sums += np.concatenate([np.bincount(cell_P, weights=w, minlength=self.GRID**2) for w in weights])

    def _cell(self, unit_P3: np.ndarray) -> np.ndarray:
        """Cell index of each direction: the sphere projected on an octahedron, the lower half folded outwards."""
        x, y, z = unit_P3.T / np.abs(unit_P3).sum(axis=1)
        folded_x, folded_y = (1 - abs(y)) * np.copysign(1, x), (1 - abs(x)) * np.copysign(1, y)
        u, v = np.where(z < 0, folded_x, x), np.where(z < 0, folded_y, y)
        column, row = (np.clip(((t + 1) / 2 * self.GRID).astype(np.int64), 0, self.GRID - 1) for t in (u, v))
        return row * self.GRID + column

    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """(count, unit mean direction) of the occupied cells `[N]`, `[N, 3]`."""
        count, *xyz = self._sums.reshape(4, -1)
        used = count > 0
        vector_N3 = np.stack(xyz, axis=-1)[used]
        return count[used], vector_N3 / np.linalg.norm(vector_N3, axis=-1, keepdims=True)

    def _constant(self) -> np.ndarray:
        count_N, unit_N3 = self._cells()
        mean_3 = count_N @ unit_N3
        fullest = np.argsort(-count_N)[: self.CANDIDATES]
        candidates = [*unit_N3[fullest], mean_3 / max(np.linalg.norm(mean_3), 1e-12)]

        def mean_angle(direction_3: np.ndarray) -> float:
            return float(count_N @ angles(unit_N3, direction_3[None]))

        best = min(candidates, key=mean_angle)
        for _ in range(self.STEPS):
            following = _weiszfeld_step(best, unit_N3, count_N)
            if mean_angle(following) >= mean_angle(best):
                break
            best = following
        return best

    def _fill(self, meter: Meter) -> None:
        count_N, unit_N3 = self._cells()
        meter.add_angles(angles(unit_N3, self._constant()[None]), count_N)


def _weiszfeld_step(at_3: np.ndarray, unit_N3: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    """One step on the sphere towards the point of least weighted sum of angles."""
    tangent_N3 = unit_N3 - (unit_N3 @ at_3)[:, None] * at_3
    tangent_N3 /= np.maximum(np.linalg.norm(tangent_N3, axis=-1, keepdims=True), 1e-12)
    angle_N = np.maximum(np.radians(angles(unit_N3, at_3[None])), 1e-3)
    step_3 = (weight_N @ tangent_N3) / (weight_N / angle_N).sum()
    moved_3 = at_3 + step_3
    return moved_3 / np.linalg.norm(moved_3)
