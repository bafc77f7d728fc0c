"""The best constant prediction of a data set: the least that a trained model has to beat.

One pass over the labels collects mergeable sums; from them follows what the constant's meter would hold, so a baseline
has the very metrics of its meter and no second pass is needed. "Best" is by the headline metric, except that the
normal is the best of a search (`NormalsConstant`).

Shapes: H x W pixels, P valid pixels, C classes, N cells or bins of a histogram.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache, singledispatch
from typing import Any

import numpy as np

from fgmoe_dist.metrics.boundary.counts import match_levels, thinned_levels
from fgmoe_dist.metrics.boundary.nms import suppress_non_maxima
from fgmoe_dist.metrics.meter import Meter, Sums
from fgmoe_dist.metrics.meters import (
    IGNORE,
    BoundaryMeter,
    DepthMeter,
    IoUMeter,
    NormalsMeter,
    SaliencyMeter,
    angles,
)


class ConstantBaseline(Sums, ABC):
    """Labels seen, summed; then the scores of the constant that does best on them."""

    def __init__(self, meter: Meter, size: int):
        super().__init__(size)
        self._meter = meter  # empty; says what to look at and how to score

    def update(self, sample: dict[str, Any]) -> None:
        """Count one image's label; a sample without it is skipped."""
        label = sample.get(self._meter.label)
        if label is not None:
            self._add(label)

    def compute(self) -> dict[str, float]:
        """The meter's metrics for the best constant; NaN where nothing was seen."""
        meter = self._meter.empty()
        if self._sums.any():
            self._fill(meter)
        return meter.compute()

    @abstractmethod
    def _add(self, label: np.ndarray) -> None: ...

    @abstractmethod
    def _fill(self, meter: Meter) -> None:
        """Put into an empty meter what the best constant prediction would have put there."""

    @abstractmethod
    def describe(self) -> str:
        """The constant in words, once something was seen."""


@singledispatch
def constant_baseline(meter: Meter) -> ConstantBaseline:
    """The baseline that goes with a task's meter, empty."""
    raise AssertionError(f"no constant baseline for {type(meter).__name__}")


def constant_baselines(tasks: Iterable[Any]) -> dict[str, ConstantBaseline]:
    """An empty baseline for each task (anything with `name` and `meter()`), by name."""
    return {task.name: constant_baseline(task.meter()) for task in tasks}


@constant_baseline.register(IoUMeter)
class IoUConstant(ConstantBaseline):
    """One class everywhere: the most frequent, for with hits h of n pixels only that class's IoU, h / n, is not 0."""

    def __init__(self, meter: IoUMeter):
        super().__init__(meter, meter.num_classes)

    def _add(self, label: np.ndarray) -> None:
        self._sums += np.bincount(label[label != IGNORE], minlength=len(self._sums))

    def _fill(self, meter: Meter) -> None:
        confusion_CC = np.zeros((len(self._sums), len(self._sums)))
        confusion_CC[:, self._sums.argmax()] = self._sums
        meter.merge(confusion_CC.ravel())

    def describe(self) -> str:
        return f"{self._meter.class_names[self._sums.argmax()]} everywhere"


@constant_baseline.register(SaliencyMeter)
class SaliencyConstant(ConstantBaseline):
    """Everything salient: all constants above a threshold call the same pixels salient, the others find nothing."""

    def __init__(self, meter: SaliencyMeter):
        super().__init__(meter, 2)

    def _add(self, label: np.ndarray) -> None:
        self._sums += np.bincount(label[label != IGNORE], minlength=2)

    def _fill(self, meter: Meter) -> None:
        values_2V = np.zeros((2, 256))
        values_2V[:, 255] = self._sums
        meter.merge(values_2V.ravel())

    def describe(self) -> str:
        return "salient everywhere"


@constant_baseline.register(DepthMeter)
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

    def describe(self) -> str:
        return f"{self._constant():.2f} m everywhere"


@constant_baseline.register(NormalsMeter)
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

    def describe(self) -> str:
        return "normal ({:.2f}, {:.2f}, {:.2f}) everywhere".format(*self._constant())


def _weiszfeld_step(at_3: np.ndarray, unit_N3: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    """One step on the sphere towards the point of least weighted sum of angles."""
    tangent_N3 = unit_N3 - (unit_N3 @ at_3)[:, None] * at_3
    tangent_N3 /= np.maximum(np.linalg.norm(tangent_N3, axis=-1, keepdims=True), 1e-12)
    angle_N = np.maximum(np.radians(angles(unit_N3, at_3[None])), 1e-3)
    step_3 = (weight_N @ tangent_N3) / (weight_N / angle_N).sum()
    moved_3 = at_3 + step_3
    return moved_3 / np.linalg.norm(moved_3)


@constant_baseline.register(BoundaryMeter)
class BoundaryConstant(ConstantBaseline):
    """Boundary everywhere, scored by the meter itself.

    Suppression leaves a constant map whole but for its fading border, and thinning shrinks the rectangle at each
    threshold to a few lines. A map of 255 cuts the border at every level, so no other constant can offer a better
    level. The thinned lines depend on the image's size only and are kept for the last few sizes.
    """

    def __init__(self, meter: BoundaryMeter):
        super().__init__(meter, len(meter.state()))

    def _add(self, label: np.ndarray) -> None:
        levels, candidate_HW = _constant_levels(*label.shape)
        scored = self._meter.empty()
        scored.add_counts(match_levels(levels, candidate_HW, label, self._meter.max_dist))
        self.merge(scored.state())

    def _fill(self, meter: Meter) -> None:
        meter.merge(self._sums)

    def describe(self) -> str:
        return "boundary everywhere"


@lru_cache(maxsize=4)
def _constant_levels(height: int, width: int) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], np.ndarray]:
    """(thinned levels, union of their pixels) of a map that is 255 everywhere."""
    ridge_HW = suppress_non_maxima(np.full((height, width), 255, np.uint8))
    levels = tuple(thinned_levels(ridge_HW))
    return levels, np.logical_or.reduce([map_HW for _, map_HW in levels])
