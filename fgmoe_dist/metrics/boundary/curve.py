"""Precision, recall and their summaries from summed boundary counts, with the conventions of the SEISM toolbox.

T = 101 thresholds, ascending.
"""

from __future__ import annotations

import numpy as np


def precision_recall(matched, predicted, truth) -> tuple[np.ndarray, np.ndarray]:
    """Shares in 0..1. Nothing predicted: precision 1, recall 0. No true boundary at all: precision 0, recall 1."""
    matched, predicted, truth = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (matched, predicted, truth)))
    recall = np.divide(matched, truth, out=np.ones_like(matched), where=truth > 0)
    precision = np.divide(matched, predicted, out=np.ones_like(matched), where=predicted > 0)
    return np.where(truth > 0, precision, 0.0), recall


def f_measure(precision, recall) -> np.ndarray:
    """Harmonic mean; 0 where both are 0."""
    total = np.asarray(precision + recall, np.float64)
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def average_precision(precision_T: np.ndarray, recall_T: np.ndarray) -> float:
    """Area under precision over recall, interpolated linearly at recall 0, 0.01 .. 1 and 0 outside the curve.

    Of thresholds with the same recall the lowest counts, and a curve of a single recall has area 0, as in the original.
    The sum of 101 samples is divided by 100, also as there.
    """
    recall, lowest = np.unique(recall_T, return_index=True)
    if len(recall) < 2:
        return 0.0
    at = np.arange(101) / 100
    return float(np.interp(at, recall, precision_T[lowest], left=0.0, right=0.0).sum() / 100)
