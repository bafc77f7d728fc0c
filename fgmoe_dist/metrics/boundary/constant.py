"""The baseline that goes with `BoundaryMeter`.

Shapes: H x W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fgmoe_dist.metrics.boundary.counts import match_levels, thinned_levels
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.boundary.nms import suppress_non_maxima
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import Meter


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


@lru_cache(maxsize=4)
def _constant_levels(height: int, width: int) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], np.ndarray]:
    """(thinned levels, union of their pixels) of a map that is 255 everywhere."""
    ridge_HW = suppress_non_maxima(np.full((height, width), 255, np.uint8))
    levels = tuple(thinned_levels(ridge_HW))
    return levels, np.logical_or.reduce([map_HW for _, map_HW in levels])
