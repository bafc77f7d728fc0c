"""How far a score may be believed: the scores that other draws of the same images would have given.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13: percentile intervals of metrics that
are pooled anew for each draw, odsF over its thresholds and mIoU over its confusion matrix. Two runs are compared on the
same draws, image for image (Berg-Kirkpatrick et al., An Empirical Investigation of Statistical Significance in NLP,
EMNLP 2012), which cancels what makes an image hard for both.

Shapes: N images, D draws, S sums of a meter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from fgmoe_dist.metrics.meter import Meter

DRAWS, LEVEL = 1000, 0.95
COLUMNS = 2048  # sums pooled at once: of all images of a large set they would not fit into memory


class Interval(NamedTuple):
    """What a quantity is, and between what 95 % of the draws lie."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether a difference has one sign in all but 5 % of the draws."""
        return self.low > 0 or self.high < 0


def draw_images(images: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image is in each draw of as many images with replacement, float64 `[D, N]`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws).astype(np.float64)


def pooled_scores(meter: Meter, rows_NS: csr_array, times_DN: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of every draw, float64 `[D]` by metric.

    Args:
        meter: of the task; only asked.
        rows_NS: each image's sums.
        times_DN: how often each image counts.
    """
    columns_NS = rows_NS.tocsc()
    sums_DS = np.empty((len(times_DN), rows_NS.shape[1]))
    for start in range(0, rows_NS.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        sums_DS[:, part] = times_DN @ columns_NS[:, part].toarray()
    scores = []
    for sums_S in sums_DS:
        one = meter.empty()
        one.merge(sums_S)
        scores.append(one.compute())
    return {metric: np.array([score[metric] for score in scores]) for metric in scores[0]}


def interval(value: float, draws_D: np.ndarray) -> Interval:
    """Between the percentiles of the draws; draws without a number (no image with a label) say nothing."""
    known = draws_D[np.isfinite(draws_D)]
    if not len(known):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
