"""Charts as SVG text that stands inside an HTML page: no script, no other file; the page's CSS classes give colours.

Shapes: C classes, N points or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fgmoe_dist.drawing.style import round_values

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 12, 44  # pixels around the plot


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A picture that shrinks with the page but never grows; `title` is read to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


@dataclass(frozen=True)
class Axes:
    """A plot with a grid; data coordinates in, pixels out."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = 520
    height: int = 340

    def x(self, value):
        low, high = self.x_range
        return _LEFT + (np.asarray(value) - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value):
        low, high = self.y_range
        return self.height - _BOTTOM - (np.asarray(value) - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def grid(self, x_label: str, y_label: str) -> list[str]:
        left, right, top, bottom = _LEFT, self.width - _RIGHT, _TOP, self.height - _BOTTOM
        parts = []
        for value in round_values(*self.x_range):
            x = self.x(value)
            parts += [f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>']
            parts += [text(x, bottom + 16, f"{value:g}", "tick", "middle")]
        for value in round_values(*self.y_range):
            y = self.y(value)
            parts += [
                f'<path class="grid" d="M{left} {y:.1f}H{right}"/>',
                text(left - 7, y + 4, f"{value:g}", "tick", "end"),
            ]
        middle = (top + bottom) / 2
        turned = f'<g transform="rotate(-90 13 {middle})">{text(13, middle, y_label, "label", "middle")}</g>'
        return [*parts, text((left + right) / 2, self.height - 8, x_label, "label", "middle"), turned]

    def line(self, x_N, y_N, kind: str = "line") -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(self.x(x_N), self.y(y_N)))
        return f'<polyline class="{kind}" points="{points}"/>'

    def dot(self, x: float, y: float, words: str, anchor: str = "start", dy: float = -9) -> str:
        """A marked point with a few words beside it."""
        shift = {"start": 8, "end": -8}.get(anchor, 0)
        label = text(self.x(x) + shift, self.y(y) + dy, words, "mark", anchor)
        return f'<circle class="dot" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4.5"/>{label}'


def bars(rows: Sequence[tuple[str, float]], title: str) -> str:
    """Horizontal bars of percentages, longest first; a row of NaN says "not in this set"."""
    rows = sorted(rows, key=lambda row: -np.nan_to_num(row[1], nan=-1.0))
    left, width, pitch = 118, 520, 19
    scale = (width - left - 52) / 100
    parts = []
    for index, (name, value) in enumerate(rows):
        y = index * pitch
        parts += [text(left - 8, y + 13, name, "tick", "end")]
        if np.isnan(value):
            parts += [text(left + 4, y + 13, "not in this set", "faint")]
            continue
        length = max(value * scale, 0.8)
        parts += [f'<rect class="track" x="{left}" y="{y + 3}" width="{100 * scale:.1f}" height="12" rx="2"/>']
        parts += [f'<rect class="bar" x="{left}" y="{y + 3}" width="{length:.1f}" height="12" rx="2"/>']
        parts += [text(left + 100 * scale + 8, y + 13, f"{value:.1f}", "value")]
    return svg(width, len(rows) * pitch + 4, title, parts)


def matrix(share_CC: np.ndarray, names: Sequence[str], title: str) -> str:
    """Row = truth, column = prediction, darker = a larger share of the row (0..1); NaN rows stay empty.

    The root of the share sets the darkness, so that a mistake of one in a hundred can still be seen.
    """
    margin, cell = 92, min(34.0, 424 / max(len(names), 1))
    size, lean = margin + cell * len(names), -60 if cell > 14 else -90
    parts = [f'<rect class="track" x="{margin}" y="{margin}" width="{size - margin}" height="{size - margin}"/>']
    for row, truth in enumerate(names):
        at = margin + row * cell + cell / 2
        parts += [text(margin - 6, at + 3.5, truth, "small", "end")]
        parts += [f'<g transform="rotate({lean} {at:.1f} {margin - 6})">{text(at, margin - 3, truth, "small")}</g>']
        for column, predicted in enumerate(names):
            share = share_CC[row, column]
            if share >= 0.0005:
                parts += [
                    _cell(margin + column * cell, margin + row * cell, cell, share, row == column, truth, predicted)
                ]
    return svg(size + (4 if lean == -90 else 44), size + 4, title, parts)


def _cell(x: float, y: float, size: float, share: float, hit: bool, truth: str, predicted: str) -> str:
    words = f"{truth} seen as {predicted}: {100 * share:.1f} %"
    place = f'x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}" opacity="{share**0.5:.2f}"'
    return f'<rect class="{"hit" if hit else "miss"}" {place}><title>{escape(words)}</title></rect>'


def precision_recall(
    precision_N, recall_N, best: tuple[float, float], words: str, title: str, beta_2: float = 1
) -> str:
    """Precision over recall (shares), with the lines of equal F and the best point (precision, recall)."""
    axes = Axes((0, 100), (0, 100))
    parts = axes.grid("recall, %", "precision, %")
    for f in np.arange(1, 10) / 10:
        # F = (1 + b) P R / (b P + R)  =>  P = F R / ((1 + b) R - b F), which is 1 at the least R
        recall = np.geomspace(beta_2 * f / (1 + beta_2 - f), 1, 80)
        precision = f * recall / ((1 + beta_2) * recall - beta_2 * f)
        parts += [axes.line(100 * recall, 100 * precision, "guide")]
        parts += [text(axes.x(100) - 3, axes.y(100 * precision[-1]) - 3, f"F {100 * f:.0f}", "faint", "end")]
    parts += [axes.line(100 * np.asarray(recall_N), 100 * np.asarray(precision_N))]
    precision, recall = best
    anchor = "end" if recall > 0.6 else "start"
    return svg(axes.width, axes.height, title, [*parts, axes.dot(100 * recall, 100 * precision, words, anchor, dy=19)])


def ranked(values_N: Sequence[float], marks: dict[int, str], y_label: str, title: str) -> str:
    """One value per image, best first as given; `marks` names some places in that order."""
    values_N = np.asarray(values_N, np.float64)
    low, high = min(0.0, values_N.min()), max(values_N.max() * 1.08, 1e-6)
    axes = Axes((0, max(len(values_N) - 1, 1)), (low, high), height=260)
    place_N = np.arange(len(values_N))
    parts = axes.grid("images, best first", y_label)
    outline_x, outline_y = [0, *place_N, place_N[-1]], [low, *values_N, low]
    parts += [axes.line(outline_x, outline_y, "area"), axes.line(place_N, values_N)]
    lowest = int(values_N.argmin())
    for place, word in marks.items():
        share = place / max(len(values_N) - 1, 1)
        anchor = "start" if share < 0.2 else "end" if share > 0.8 else "middle"
        # The curve rises from its lowest point, so words there go below it where there is room.
        below = place == lowest and values_N[place] > 0.12 * high
        parts += [axes.dot(place, values_N[place], word, anchor, dy=18 if below else -9)]
    return svg(axes.width, axes.height, title, parts)
