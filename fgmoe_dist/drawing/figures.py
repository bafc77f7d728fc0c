"""Charts with a sentence below them, for a report: one builder for each thing that a meter can tell.

Builders take plain numbers; a task hands its meter's to the one that fits. Shapes: C classes, N points of a curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fgmoe_dist.drawing import charts


@dataclass(frozen=True)
class Figure:
    """A chart (SVG text) and the sentence below it."""

    chart: str
    caption: str


def class_bars(iou: Sequence[tuple[str, float]]) -> Figure:
    """The IoU of each class, by name."""
    return Figure(charts.bars(iou, "IoU of each class"), "Intersection over union of each class, percent.")


def confusion(confusion_CC: np.ndarray, names: Sequence[str]) -> Figure:
    """Row = true class, column = predicted class; classes in neither are left out."""
    truth_C, predicted_C = confusion_CC.sum(1), confusion_CC.sum(0)
    seen = np.flatnonzero(truth_C + predicted_C)
    share_CC = confusion_CC / np.maximum(truth_C, 1)[:, None]
    chart = charts.matrix(share_CC[np.ix_(seen, seen)], [names[c] for c in seen], "confusion matrix")
    return Figure(chart, _confusions(share_CC, names))


def _confusions(share_CC: np.ndarray, names: Sequence[str]) -> str:
    """The three most frequent mistakes in words."""
    mistakes_CC = share_CC * (1 - np.eye(len(names)))
    worst = [np.unravel_index(flat, mistakes_CC.shape) for flat in np.argsort(-mistakes_CC, axis=None)[:3]]
    words = [
        f"{names[t]} seen as {names[p]} {100 * mistakes_CC[t, p]:.0f} %" for t, p in worst if mistakes_CC[t, p] > 0
    ]
    start = "Rows are true classes, columns predicted ones; darker is a larger share of the row."
    return f"{start} Most confused: {', '.join(words)}." if words else start


def precision_recall(
    curve: Mapping[str, np.ndarray], best: Mapping[str, float], best_f: float, name: str, beta_2: float = 1.0
) -> Figure:
    """A curve of `precision` and `recall` (shares `[N]`), and the point where F, called `name`, is best.

    `best` has that point's `precision`, `recall` (percent) and `threshold`.
    """
    chart = charts.precision_recall(
        curve["precision"], curve["recall"], (best["precision"] / 100, best["recall"] / 100),
        f"{name} {best_f:.1f}", f"precision over recall, {name} {best_f:.1f}", beta_2,
    )  # fmt: skip
    caption = (
        f"Precision over recall, all thresholds; best at {best['threshold']:.2f}. Grey: equal F, beta² {beta_2:g}."
    )
    return Figure(chart, caption)


def angles_within(degrees_N: np.ndarray, share_N: np.ndarray, marks: Iterable[tuple[float, float]]) -> Figure:
    """The share of pixels with a smaller angle, and some points of it as (degrees, percent)."""
    axes = charts.Axes((0, 90), (0, 100))
    shown = degrees_N <= 90
    parts = [
        *axes.grid("angle, degrees", "pixels within, %"),
        axes.line(degrees_N[shown][::20], 100 * share_N[shown][::20]),
    ]
    for limit, within in marks:
        parts += [axes.dot(limit, within, f"{within:.1f} % within {limit:g}°", dy=14)]
    chart = charts.svg(axes.width, axes.height, "share of pixels within an angle", parts)
    return Figure(chart, "Share of pixels whose angle to the true normal is below a limit.")
