"""The best constant prediction of a data set: the least that a trained model has to beat.

One pass over the labels collects mergeable sums; from them follows what the constant's meter would hold, so a baseline
has the metrics of its meter and no second pass is needed. "Best" is by the headline metric, except that the normal is
the best of a search (`NormalsConstant`). Each baseline stands beside its meter; a task says which belong together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from fgmoe_dist.metrics.meter import Meter, Metrics, Sums


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

    def compute(self) -> Metrics:
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
