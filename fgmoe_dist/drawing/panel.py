"""One readable picture of an image and all that was predicted for it, with legends and scales.

Columns are tasks; the rows of an image are its predictions and, where known, the truth. A column has one
legend: the colours of the classes present, or a scale of values with its unit. The scale of a column is shared by
prediction and truth, so that equal colours mean equal values. Nothing is masked by the truth: what a model
predicts where no label exists is shown too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from fgmoe_dist.drawing.columns import Column, Legend, Maps
from fgmoe_dist.drawing.style import FAINT, INK, LINE, PAPER, font
from fgmoe_dist.files import write_png

TILE, GAP, MARGIN, GUTTER, HEADER, CAPTION = 360, 14, 20, 30, 34, 44  # pixels; TILE is the width of a picture


@dataclass(frozen=True)
class Scene:
    """An image with its predictions and, if known, its labels (docs/contracts.md), all at one resolution."""

    image_HWC: np.ndarray
    predictions: Mapping[str, np.ndarray]
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    caption: str = ""


class Drawn(Protocol):
    """What a panel asks of a task: its name in predictions and samples, and its column."""

    name: str

    def column(self, predictions: Maps, truths: Maps) -> Column: ...


def panel(
    image_HWC: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    sample: Mapping[str, np.ndarray] | None,
    tasks: Sequence[Drawn],
    path: str | Path | None = None,
    caption: str = "",
) -> np.ndarray:
    """Input, every task's prediction, and below them the truth where `sample` has it.

    Saved at `path` if given; returned as uint8 RGB.
    """
    return sheet([Scene(image_HWC, predictions, sample or {}, caption)], tasks, path)


def sheet(scenes: Sequence[Scene], tasks: Sequence[Drawn], path: str | Path | None = None) -> np.ndarray:
    """Several scenes below each other, with one legend per task at the foot. See `panel`."""
    columns = [
        task.column(
            [scene.predictions.get(task.name) for scene in scenes], [scene.sample.get(task.name) for scene in scenes]
        )
        for task in tasks
        if any(task.name in scene.predictions for scene in scenes)
    ]
    return _saved(_compose(scenes, columns), path)


def label_sheet(scenes: Sequence[Scene], tasks: Sequence[Drawn], path: str | Path | None = None) -> np.ndarray:
    """As `sheet`, of scenes that have labels and no predictions: one row each."""
    nothing = [None] * len(scenes)
    columns = [task.column(nothing, [scene.sample.get(task.name) for scene in scenes]) for task in tasks]
    columns = [replace(column, predictions=column.truths, truths=nothing) for column in columns]
    return _saved(_compose(scenes, columns), path)


def _saved(picture: np.ndarray, path: str | Path | None) -> np.ndarray:
    if path is not None:
        write_png(Path(path), picture)
    return picture


# How it is laid out.


def _compose(scenes: Sequence[Scene], columns: Sequence[Column]) -> np.ndarray:
    tile_w, tile_h = _tile_size(scenes)
    with_truth = [any(one.truths[i] is not None for one in columns) for i in range(len(scenes))]
    legends = [_draw_legend(one.legend, tile_w) for one in columns]
    rows = len(scenes) + sum(with_truth)
    gutter = GUTTER if any(with_truth) else 0
    width = 2 * MARGIN + gutter + (1 + len(columns)) * (tile_w + GAP) - GAP
    foot = max((legend.height for legend in legends), default=0)
    captions = CAPTION * with_truth[:-1].count(False)  # the last one stands beside the legends
    height = 2 * MARGIN + HEADER + rows * (tile_h + GAP) + captions + max(foot, CAPTION)
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = [MARGIN + gutter + i * (tile_w + GAP) for i in range(1 + len(columns))]
    for x, title in zip(left, ["input", *(one.title for one in columns)]):
        draw.text((x, MARGIN), title, INK, font(19))
    top = MARGIN + HEADER
    for i, scene in enumerate(scenes):
        _paste(canvas, scene.image_HWC, left[0], top, tile_w, tile_h)
        _write_caption(draw, scene, left[0], top + tile_h + GAP - 4)
        tiles = {"prediction": [one.predictions[i] for one in columns]}
        if with_truth[i]:
            tiles["truth"] = [one.truths[i] for one in columns]
        for word, row in tiles.items():
            if gutter:
                _write_upright(canvas, word, top, tile_h)
            for x, picture in zip(left[1:], row):
                _paste(canvas, picture, x, top, tile_w, tile_h)
            top += tile_h + GAP
        if not with_truth[i] and i + 1 < len(scenes):
            top += CAPTION
    for x, legend in zip(left[1:], legends):
        canvas.paste(legend, (x, top))
    return np.asarray(canvas)


def _tile_size(scenes: Sequence[Scene]) -> tuple[int, int]:
    """Width and height of every tile: wide enough for a legend, the shape of the middle scene."""
    aspect = sorted(scene.image_HWC.shape[0] / scene.image_HWC.shape[1] for scene in scenes)[len(scenes) // 2]
    return TILE, round(TILE * min(max(aspect, 0.4), 1.6))


def _paste(canvas: Image.Image, picture_HWC: np.ndarray | None, x: int, y: int, width: int, height: int) -> None:
    draw = ImageDraw.Draw(canvas)
    if picture_HWC is None:
        draw.text((x + width / 2, y + height / 2), "no label", FAINT, font(16), anchor="mm")
        return
    scale = min(width / picture_HWC.shape[1], height / picture_HWC.shape[0])
    size = (max(1, round(picture_HWC.shape[1] * scale)), max(1, round(picture_HWC.shape[0] * scale)))
    tile = Image.fromarray(picture_HWC).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    x, y = x + (width - size[0]) // 2, y + (height - size[1]) // 2
    canvas.paste(tile, (x, y))
    draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=LINE)


def _write_upright(canvas: Image.Image, word: str, top: int, height: int) -> None:
    strip = Image.new("RGB", (height, GUTTER - 6), PAPER)
    ImageDraw.Draw(strip).text((height / 2, (GUTTER - 6) / 2), word, FAINT, font(16), anchor="mm")
    canvas.paste(strip.rotate(90, expand=True), (MARGIN, top))


def _write_caption(draw: ImageDraw.ImageDraw, scene: Scene, x: int, y: int) -> None:
    """Under the input: what it is, and its size. That place is free, the input has no truth and no legend."""
    height, width = scene.image_HWC.shape[:2]
    if scene.caption:
        draw.text((x, y), _shorten(scene.caption, TILE, 16), INK, font(16))
        y += 22
    draw.text((x, y), f"{width} x {height} pixels", FAINT, font(14))


def _draw_legend(legend: Legend, width: int) -> Image.Image:
    return _draw_scale(legend, width) if legend.scale_NC is not None else _draw_swatches(legend, width)


def _draw_scale(legend: Legend, width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, 40), PAPER)
    draw = ImageDraw.Draw(canvas)
    bar = Image.fromarray(np.repeat(legend.scale_NC[None], 12, axis=0)).resize((width, 12))
    canvas.paste(bar, (0, 2))
    draw.rectangle((0, 2, width - 1, 13), outline=LINE)
    for position, word in legend.ticks:
        half = draw.textlength(word, font(14)) / 2
        x = position * (width - 1)
        draw.line((x, 14, x, 18), FAINT)
        draw.text((min(max(x, half), width - half), 20), word, INK, font(14), anchor="ma")
    return canvas


def _draw_swatches(legend: Legend, width: int) -> Image.Image:
    """Swatches in lines, as many on a line as fit."""
    small, box, line = font(14), 13, 21
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], 0, 0
    for colour, word in legend.swatches:
        word = _shorten(word, width - box - 6, 14)
        length = box + 6 + measure.textlength(word, small)
        if x and x + length > width:
            x, y = 0, y + line
        places.append((x, y, colour, word))
        x += length + 14
    canvas = Image.new("RGB", (width, y + line + 4), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, y, colour, word in places:
        draw.rectangle((x, y + 3, x + box, y + 3 + box), colour, outline=None if colour == PAPER else LINE)
        draw.text((x + box + 6, y + 3 + box / 2), word, INK, small, anchor="lm")
    return canvas


def _shorten(text: str, width: float, size: int) -> str:
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
