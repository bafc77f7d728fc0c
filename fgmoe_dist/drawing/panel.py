"""One readable picture of an image and all that was predicted for it, with legends and scales.

Columns are tasks; the rows of an image are its predictions and, where known, the truth. A column has one
legend: the colours of the classes present, the depth scale in metres. The scale of a column is shared by
prediction and truth, so that equal colours mean equal values. Nothing is masked by the truth: what a model
predicts where no label exists is shown too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgmoe_dist.drawing import pictures

TILE, GAP, MARGIN, GUTTER, HEADER, CAPTION = 360, 14, 20, 30, 34, 44  # pixels; TILE is the width of a picture
INK, FAINT, PAPER, LINE = (28, 30, 36), (110, 114, 124), (255, 255, 255), (205, 208, 214)
MOST_CLASSES = 40  # in a legend; the rarest beyond are counted


@dataclass(frozen=True)
class Scene:
    """An image with its predictions and, if known, its labels (docs/contracts.md), all at one resolution."""

    image_HWC: np.ndarray
    predictions: Mapping[str, np.ndarray]
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    caption: str = ""


@dataclass(frozen=True)
class Legend:
    """Swatches of colour with a word each, or a colour scale with words below it."""

    swatches: Sequence[tuple[tuple[int, int, int], str]] = ()
    scale_NC: np.ndarray | None = None
    ticks: Sequence[tuple[float, str]] = ()  # position 0..1 along the scale


@dataclass(frozen=True)
class Column:
    """A task's pictures, scene by scene; None where there is nothing to draw."""

    title: str
    predictions: Sequence[np.ndarray | None]
    truths: Sequence[np.ndarray | None]
    legend: Legend


def panel(
    image_HWC: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    sample: Mapping[str, np.ndarray] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    path: str | Path | None = None,
    caption: str = "",
) -> np.ndarray:
    """Input, every task's prediction, and below them the truth where `sample` has it.

    `classes` names the classes of each task that has some. Saved at `path` if given; returned as uint8 RGB.
    """
    return sheet([Scene(image_HWC, predictions, sample or {}, caption)], classes, path)


def sheet(
    scenes: Sequence[Scene],
    classes: Mapping[str, Sequence[str]] | None = None,
    path: str | Path | None = None,
) -> np.ndarray:
    """Several scenes below each other, with one legend a task at the foot. See `panel`."""
    names = list(dict.fromkeys(name for scene in scenes for name in scene.predictions))
    columns = [column(name, scenes, (classes or {}).get(name, ())) for name in names]
    picture = _compose(scenes, columns)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return picture


# What is drawn, a task at a time.


def column(name: str, scenes: Sequence[Scene], class_names: Sequence[str]) -> Column:
    """One task's predictions and labels in all scenes, on one scale and with one legend."""
    predictions = [scene.predictions.get(name) for scene in scenes]
    truths = [scene.sample.get(name) for scene in scenes]
    draw = {
        "depth": _depth,
        "normals": _normals,
        "sal": _saliency,
        "edge": _edge,
    }.get(name)
    return draw(predictions, truths) if draw else _classes(name, predictions, truths, class_names)


def _classes(name: str, predictions: Sequence, truths: Sequence, class_names: Sequence[str]) -> Column:
    pixels = sum(np.bincount(ids.ravel(), minlength=256) for ids in [*predictions, *truths] if ids is not None)
    colours = pictures.class_colours(class_names)
    present = [index for index in np.argsort(-pixels, kind="stable") if pixels[index] and index < len(class_names)]
    swatches = [(tuple(colours[index].tolist()), class_names[index]) for index in present[:MOST_CLASSES]]
    if len(present) > MOST_CLASSES:
        swatches.append((PAPER, f"and {len(present) - MOST_CLASSES} more"))

    def draw(ids: np.ndarray) -> np.ndarray:
        return pictures.picture_classes(ids, class_names)

    title = {"semseg": "semantic classes", "human_parts": "human parts"}.get(name, name)
    return Column(title, _each(draw, predictions), _each(draw, truths), Legend(swatches))


def _depth(predictions: Sequence, truths: Sequence) -> Column:
    # 0 is "no depth" in a label only; predicted, it is a value and must show.
    predictions = [None if depth is None else np.maximum(depth, 1e-6) for depth in predictions]
    low, high = pictures.depth_range([depth for depth in [*predictions, *truths] if depth is not None])

    def draw(depth: np.ndarray) -> np.ndarray:
        return pictures.picture_depth(depth, low, high)

    ticks = [((value - low) / max(high - low, 1e-6), f"{value:g} m") for value in _round_values(low, high)]
    legend = Legend(scale_NC=pictures.depth_scale(), ticks=ticks)
    return Column("depth", _each(draw, predictions), _each(draw, truths), legend)


def _normals(predictions: Sequence, truths: Sequence) -> Column:
    axes = np.concatenate([np.eye(3), -np.eye(3)])[None]
    colours = [tuple(colour) for colour in pictures.picture_normals(axes)[0].tolist()]
    legend = Legend(list(zip(colours, ["+x", "+y", "+z", "-x", "-y", "-z"])))
    draw = pictures.picture_normals
    return Column("surface normals", _each(draw, predictions), _each(draw, truths), legend)


def _saliency(predictions: Sequence, truths: Sequence) -> Column:
    return _probability("saliency", pictures.picture_saliency, predictions, truths)


def _edge(predictions: Sequence, truths: Sequence) -> Column:
    return _probability("boundaries", pictures.picture_edge, predictions, truths)


def _probability(title: str, draw, predictions: Sequence, truths: Sequence) -> Column:
    def draw_label(label: np.ndarray) -> np.ndarray:
        return draw(np.where(label == 1, 255, 0).astype(np.uint8), label == pictures.IGNORE)

    scale_NC = draw(np.arange(256, dtype=np.uint8)[None])[0]
    legend = Legend(scale_NC=scale_NC, ticks=[(0, "0"), (0.5, "probability"), (1, "1")])
    return Column(title, _each(draw, predictions), _each(draw_label, truths), legend)


def _each(draw, arrays: Sequence) -> list[np.ndarray | None]:
    return [None if array is None else draw(array) for array in arrays]


def _round_values(low: float, high: float) -> list[float]:
    """Three to eight round numbers between `low` and `high`."""
    for step in (20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        values = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        if len(values) >= 3:
            return [round(float(value), 2) for value in values]
    return [round(low, 3)]


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
        draw.text((x, MARGIN), title, INK, _font(19))
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
        draw.text((x + width / 2, y + height / 2), "no label", FAINT, _font(16), anchor="mm")
        return
    scale = min(width / picture_HWC.shape[1], height / picture_HWC.shape[0])
    size = (max(1, round(picture_HWC.shape[1] * scale)), max(1, round(picture_HWC.shape[0] * scale)))
    tile = Image.fromarray(picture_HWC).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    x, y = x + (width - size[0]) // 2, y + (height - size[1]) // 2
    canvas.paste(tile, (x, y))
    draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=LINE)


def _write_upright(canvas: Image.Image, word: str, top: int, height: int) -> None:
    strip = Image.new("RGB", (height, GUTTER - 6), PAPER)
    ImageDraw.Draw(strip).text((height / 2, (GUTTER - 6) / 2), word, FAINT, _font(16), anchor="mm")
    canvas.paste(strip.rotate(90, expand=True), (MARGIN, top))


def _write_caption(draw: ImageDraw.ImageDraw, scene: Scene, x: int, y: int) -> None:
    """Under the input: what it is, and its size. That place is free, the input has no truth and no legend."""
    height, width = scene.image_HWC.shape[:2]
    if scene.caption:
        draw.text((x, y), _shorten(scene.caption, TILE, 16), INK, _font(16))
        y += 22
    draw.text((x, y), f"{width} x {height} pixels", FAINT, _font(14))


def _draw_legend(legend: Legend, width: int) -> Image.Image:
    return _draw_scale(legend, width) if legend.scale_NC is not None else _draw_swatches(legend, width)


def _draw_scale(legend: Legend, width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, 40), PAPER)
    draw = ImageDraw.Draw(canvas)
    bar = Image.fromarray(np.repeat(legend.scale_NC[None], 12, axis=0)).resize((width, 12))
    canvas.paste(bar, (0, 2))
    draw.rectangle((0, 2, width - 1, 13), outline=LINE)
    for position, word in legend.ticks:
        half = draw.textlength(word, _font(14)) / 2
        x = position * (width - 1)
        draw.line((x, 14, x, 18), FAINT)
        draw.text((min(max(x, half), width - half), 20), word, INK, _font(14), anchor="ma")
    return canvas


def _draw_swatches(legend: Legend, width: int) -> Image.Image:
    """Swatches in lines, as many on a line as fit."""
    font, box, line = _font(14), 13, 21
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], 0, 0
    for colour, word in legend.swatches:
        word = _shorten(word, width - box - 6, 14)
        length = box + 6 + measure.textlength(word, font)
        if x and x + length > width:
            x, y = 0, y + line
        places.append((x, y, colour, word))
        x += length + 14
    canvas = Image.new("RGB", (width, y + line + 4), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, y, colour, word in places:
        draw.rectangle((x, y + 3, x + box, y + 3 + box), colour, outline=None if colour == PAPER else LINE)
        draw.text((x + box + 6, y + 3 + box / 2), word, INK, font, anchor="lm")
    return canvas


def _shorten(text: str, width: float, size: int) -> str:
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The face Pillow carries, so that a panel looks the same on every machine."""
    return ImageFont.load_default(size)
