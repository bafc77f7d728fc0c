"""The load of the experts as a heat map: a row per block and task, a column per expert.

Colours are shares of the even load on a logarithmic scale, so that half and twice the load stand out alike; an expert
that nobody chose is hatched. Legend: L blocks, T tasks, E experts per task, N colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fgmoe_dist.drawing.style import FAINT, INK, LINE, PAPER, font, hatch
from fgmoe_dist.files import write_png

ROW, GAP, MARGIN, TITLE, SCALE = 26, 12, 20, 30, 240  # pixels; SCALE is the length of the colour scale
FIGURE = 80  # pixels of each of the figures beside a row
# What stands beside a row, and how it is written.
FIGURES = {"entropy": "{:.3f}", "busiest": "{:.1f}x", "dead": "{}", "dropped": "{:.1%}"}
DOUBLINGS = 3  # the scale ends at 1/8 and 8 times the even load
# Too little is blue, too much red, even is nearly white: matplotlib's `RdBu`, reversed, in nine steps.
STOPS = np.array([
    (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247),
    (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43),
])  # fmt: skip


def load_map(
    load_LTE: np.ndarray,
    figures_LT: Sequence[Sequence[NamedTuple]],
    task_names: Sequence[str],
    path: str | Path | None = None,
    caption: str = "",
    groups: int = 1,
) -> np.ndarray:
    """uint8 RGB; saved at `path` if given.

    `load_LTE` counts the slots that chose each expert. The row of a block and task ends in its `FIGURES`, attributes
    of `figures_LT`. Lines part the `groups` of experts that share a device.
    """
    blocks, tasks, experts = load_LTE.shape
    cell = max(4, min(44, 1200 // experts))
    small = font(14)
    labels = max(small.getlength(name) for name in task_names) + 2 * GAP
    left, top = MARGIN + max(round(labels), round(small.getlength("block 00")) + GAP), MARGIN + 2 * TITLE
    right = left + experts * cell + GAP
    width = max(right + len(FIGURES) * FIGURE, left + SCALE + 3 * FIGURE) + MARGIN
    foot = top + blocks * (tasks * ROW + TITLE)
    canvas = Image.new("RGB", (width, foot + 3 * TITLE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), f"load of the routed experts{caption and ', ' + caption}", INK, font(19))
    for i, title in enumerate(FIGURES):
        draw.text((right + (i + 1) * FIGURE, top - 4), title, FAINT, small, anchor="rs")
    for block in range(blocks):
        y = top + block * (tasks * ROW + TITLE)
        draw.text((MARGIN, y + 6), f"block {block}", FAINT, small)
        _draw_columns(draw, left, y + TITLE - 6, experts, cell)
        for t, name in enumerate(task_names):
            place = y + TITLE + t * ROW
            draw.text((left - GAP, place + ROW / 2), name, INK, small, anchor="rm")
            _draw_row(canvas, left, place, cell, load_LTE[block, t], groups)
            for i, text in enumerate(_texts(figures_LT[block][t])):
                draw.text((right + (i + 1) * FIGURE, place + ROW / 2), text, INK, small, anchor="rm")
    _draw_legend(canvas, left, foot + TITLE)
    picture = np.asarray(canvas)
    if path is not None:
        write_png(path, picture)
    return picture


def _texts(figures: NamedTuple) -> list[str]:
    return [form.format(getattr(figures, name)) for name, form in FIGURES.items()]


def load_colours(times_even: np.ndarray) -> np.ndarray:
    """uint8 `[..., 3]` for loads as multiples of the even one, all above 0."""
    position = (np.log2(times_even) / DOUBLINGS + 1) / 2 * (len(STOPS) - 1)
    channels = [np.interp(position, np.arange(len(STOPS)), STOPS[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _draw_row(canvas: Image.Image, x: int, y: int, cell: int, load_E: np.ndarray, groups: int) -> None:
    draw = ImageDraw.Draw(canvas)
    times_E = load_E * len(load_E) / max(load_E.sum(), 1)
    colours_E = load_colours(np.maximum(times_E, 1e-9))
    for e, times in enumerate(times_E):
        box = (x + e * cell, y, x + (e + 1) * cell - 1, y + ROW - 2)
        if times == 0:
            _hatch(canvas, box)
            continue
        draw.rectangle(box, tuple(colours_E[e].tolist()))
        if cell >= 36:
            ink = PAPER if colours_E[e].sum() < 420 else INK
            draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), f"{times:.2f}", ink, font(12), anchor="mm")
    for group in range(1, groups):
        edge = x + group * len(load_E) // groups * cell
        draw.line((edge, y, edge, y + ROW - 1), INK, 2)


def _draw_columns(draw: ImageDraw.ImageDraw, x: int, y: int, experts: int, cell: int) -> None:
    """The experts' numbers, as many as there is room for."""
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, experts) if step * cell >= 30)
    for e in range(0, experts, every):
        draw.text((x + (e + 0.5) * cell, y), str(e), FAINT, font(12), anchor="ms")


def _draw_legend(canvas: Image.Image, x: int, y: int) -> None:
    draw = ImageDraw.Draw(canvas)
    for i, colour in enumerate(load_colours(2 ** np.linspace(-DOUBLINGS, DOUBLINGS, SCALE))):
        draw.line((x + i, y, x + i, y + 12), tuple(colour.tolist()))
    draw.rectangle((x, y, x + SCALE - 1, y + 12), outline=LINE)
    for doubling in range(-DOUBLINGS, DOUBLINGS + 1):
        word = f"1/{2**-doubling}" if doubling < 0 else ("even" if doubling == 0 else f"{2**doubling}x")
        place = x + (doubling / DOUBLINGS + 1) / 2 * (SCALE - 1)
        draw.line((place, y + 13, place, y + 17), FAINT)
        draw.text((place, y + 19), word, INK, font(12), anchor="ma")
    _hatch(canvas, (x + SCALE + 24, y, x + SCALE + 44, y + 12))
    draw.text((x + SCALE + 52, y + 6), "dead: no token chose it", INK, font(14), anchor="lm")


def _hatch(canvas: Image.Image, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    stripes = hatch(bottom - top + 1, right - left + 1, period=8, stripe=3, start=left + top)
    canvas.paste(Image.fromarray(stripes), (left, top))
