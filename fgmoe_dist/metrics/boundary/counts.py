"""From one predicted boundary map to what odsF adds up: matched and predicted pixels at each of 101 thresholds.

Shapes: H x W pixels, T = 101 thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fgmoe_dist.metrics.boundary.matching import Matcher
from fgmoe_dist.metrics.boundary.nms import suppress_non_maxima
from fgmoe_dist.metrics.boundary.thinning import thin_words

# float32 like the map itself: 51 / 255 and 0.2 must be a tie, and a tie is no boundary.
THRESHOLDS_T = np.concatenate([[0.001], np.arange(1, 100) / 100, [0.999]]).astype(np.float32)

_WORD = 64  # levels thinned at once


@dataclass(frozen=True)
class BoundaryCounts:
    """Pixels of one image. Every pair has one pixel on each side, so `matched_T` serves precision and recall."""

    matched_T: np.ndarray
    predicted_T: np.ndarray
    truth: int


def boundary_counts(probability_HW: np.ndarray, truth_HW: np.ndarray, max_dist: float) -> BoundaryCounts:
    """Score one image.

    Args:
        probability_HW: uint8, 255 times the boundary probability.
        truth_HW: the thinned true boundary, 0 or 1, same size.
        max_dist: matching radius as a share of the image diagonal (PASCAL 0.0075, NYUD 0.011).
    """
    ridge_HW = suppress_non_maxima(probability_HW)
    return match_levels(thinned_levels(ridge_HW), ridge_HW > 0, truth_HW, max_dist)


def thinned_levels(ridge_HW: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(thresholds, bool `[T]`; their thinned map) for each group that cuts the ridges alike, highest first."""
    # The cuts are nested, so those of one size are one cut.
    value = np.sort(ridge_HW[ridge_HW > THRESHOLDS_T[0]])
    size_T = len(value) - np.searchsorted(value, THRESHOLDS_T, side="right")
    levels = [size_T == size for size in np.unique(size_T)]
    for start in range(0, len(levels), _WORD):
        yield from _thinned_together(ridge_HW, levels[start : start + _WORD])


def _thinned_together(ridge_HW: np.ndarray, levels: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """At most 64 levels, highest threshold first, thinned as the bits of one map of words."""
    cut_K = np.array([THRESHOLDS_T[same_T][0] for same_T in levels])
    # A pixel above k of the thresholds is in the k lowest levels, the last ones: the k highest bits.
    above_HW = np.searchsorted(cut_K[::-1], ridge_HW, side="left")
    member_K = np.array([((1 << k) - 1) << (len(levels) - k) for k in range(len(levels) + 1)], np.uint64)
    word_HW = thin_words(member_K[above_HW])
    pixel = np.flatnonzero(word_HW)
    word_P = word_HW.ravel()[pixel]
    for k, same_T in enumerate(levels):
        map_HW = np.zeros(ridge_HW.shape, bool)
        map_HW.ravel()[pixel] = word_P >> np.uint64(k) & np.uint64(1)
        yield same_T, map_HW


def match_levels(
    levels: Iterable[tuple[np.ndarray, np.ndarray]],
    candidate_HW: np.ndarray,
    truth_HW: np.ndarray,
    max_dist: float,
) -> BoundaryCounts:
    """Count what pairs up at every level; all levels' pixels lie in `candidate_HW`."""
    truth_HW = truth_HW.astype(bool)
    matcher = Matcher(candidate_HW, truth_HW, max_dist * float(np.hypot(*truth_HW.shape)))
    matched_T, predicted_T = np.zeros(len(THRESHOLDS_T), np.int64), np.zeros(len(THRESHOLDS_T), np.int64)
    for same_T, map_HW in levels:
        matched_T[same_T] = matcher.count(map_HW)
        predicted_T[same_T] = map_HW.sum()
    return BoundaryCounts(matched_T, predicted_T, int(truth_HW.sum()))
