"""Which charts tell what a meter has seen.

Shapes: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from fgmoe_dist.drawing import charts
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.metrics.meters import BoundaryMeter, IoUMeter, NormalsMeter, SaliencyMeter


@dataclass(frozen=True)
class Figure:
    """A chart (SVG text) and the sentence below it."""

    chart: str
    caption: str


@singledispatch
def figures(meter: Meter) -> list[Figure]:
    """The charts of a meter that has seen something; none for a kind whose figures say all."""
    return []


@figures.register
def _(meter: IoUMeter) -> list[Figure]:
    iou = [(name.removeprefix("IoU/"), value) for name, value in meter.details().items()]
    confusion_CC = meter.confusion
    truth_C, predicted_C = confusion_CC.sum(1), confusion_CC.sum(0)
    seen = np.flatnonzero(truth_C + predicted_C)
    share_CC = confusion_CC / np.maximum(truth_C, 1)[:, None]
    names = [meter.class_names[c] for c in seen]
    matrix = charts.matrix(share_CC[np.ix_(seen, seen)], names, "confusion matrix")
    bars = Figure(charts.bars(iou, "IoU of each class"), "Intersection over union of each class, percent.")
    return [bars, Figure(matrix, _confusions(share_CC, meter.class_names))]


def _confusions(share_CC: np.ndarray, names: list[str]) -> str:
    """The three most frequent mistakes in words."""
    mistakes_CC = share_CC * (1 - np.eye(len(names)))
    worst = [np.unravel_index(flat, mistakes_CC.shape) for flat in np.argsort(-mistakes_CC, axis=None)[:3]]
    words = [
        f"{names[t]} seen as {names[p]} {100 * mistakes_CC[t, p]:.0f} %" for t, p in worst if mistakes_CC[t, p] > 0
    ]
    start = "Rows are true classes, columns predicted ones; darker is a larger share of the row."
    return f"{start} Most confused: {', '.join(words)}." if words else start


@figures.register
def _(meter: BoundaryMeter) -> list[Figure]:
    return [_precision_recall(meter, 1.0, meter.compute()["odsF"], "odsF")]


@figures.register
def _(meter: SaliencyMeter) -> list[Figure]:
    return [_precision_recall(meter, meter.BETA_SQUARED, meter.compute()["maxF"], "maxF")]


def _precision_recall(meter: BoundaryMeter | SaliencyMeter, beta_2: float, best_f: float, name: str) -> Figure:
    curve, best = meter.curve(), meter.details()
    chart = charts.precision_recall(
        curve["precision"], curve["recall"], (best["precision"] / 100, best["recall"] / 100),
        f"{name} {best_f:.1f}", f"precision over recall, {name} {best_f:.1f}", beta_2,
    )  # fmt: skip
    caption = (
        f"Precision over recall, all thresholds; best at {best['threshold']:.2f}. Grey: equal F, beta² {beta_2:g}."
    )
    return Figure(chart, caption)


@figures.register
def _(meter: NormalsMeter) -> list[Figure]:
    degrees, share = meter.cumulative()
    axes = charts.Axes((0, 90), (0, 100))
    shown = degrees <= 90
    parts = [
        *axes.grid("angle, degrees", "pixels within, %"),
        axes.line(degrees[shown][::20], 100 * share[shown][::20]),
    ]
    scores = meter.compute()
    for limit in meter.WITHIN:
        within = scores[f"within_{limit:g}"]
        parts += [axes.dot(limit, within, f"{within:.1f} % within {limit:g}°", dy=14)]
    chart = charts.svg(axes.width, axes.height, "share of pixels within an angle", parts)
    return [Figure(chart, "Share of pixels whose angle to the true normal is below a limit.")]
