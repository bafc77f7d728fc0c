"""One task's pictures, scene by scene, on one scale and with one legend: what a panel sets side by side.

One builder for each kind of map; a task calls the one that shows its own. Predictions and truths come scene by scene,
with None where there is nothing to draw. A builder shares its scale between them, so that equal colours mean equal
values. Shapes: H x W pixels, C channels, N colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fgmoe_dist.drawing import pictures
from fgmoe_dist.drawing.style import PAPER, few_round_values

MOST_CLASSES = 40  # in a legend; the rarest beyond are counted

Maps = Sequence["np.ndarray | None"]
Draw = Callable[[np.ndarray], np.ndarray]  # a map to uint8 RGB


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


def classes(
    title: str,
    class_names: Sequence[str],
    predictions: Maps,
    truths: Maps,
    ignore: int = pictures.IGNORE,
    colours_NC: np.ndarray | None = None,
) -> Column:
    """Class ids `[H, W]`, in `colours_NC` if given; the legend names the classes present, the most frequent first."""
    pixels = sum(np.bincount(ids.ravel(), minlength=ignore + 1) for ids in [*predictions, *truths] if ids is not None)
    colours = pictures.class_colours(class_names) if colours_NC is None else colours_NC
    present = [index for index in np.argsort(-pixels, kind="stable") if pixels[index] and index < len(class_names)]
    swatches = [(tuple(colours[index].tolist()), class_names[index]) for index in present[:MOST_CLASSES]]
    if len(present) > MOST_CLASSES:
        swatches.append((PAPER, f"and {len(present) - MOST_CLASSES} more"))

    def draw(ids: np.ndarray) -> np.ndarray:
        return pictures.picture_classes(ids, class_names, ignore, colours_NC)

    return Column(title, _each(draw, predictions), _each(draw, truths), Legend(swatches))


def scalar(
    title: str, unit: str, labelled: Callable[[np.ndarray], np.ndarray], predictions: Maps, truths: Maps, finest=0.0
) -> Column:
    """Values `[H, W]`, small ones bright, with a scale in `unit`.

    `labelled` tells the pixels that have a value. No tick is finer than `finest`.
    """
    low, high = pictures.value_range(
        [values[labelled(values)] for values in [*predictions, *truths] if values is not None]
    )

    def draw(values: np.ndarray) -> np.ndarray:
        return pictures.picture_values(values, labelled(values), low, high)

    ticks = [
        ((value - low) / max(high - low, pictures.LEAST_RANGE), f"{value:g} {unit}".rstrip())
        for value in few_round_values(low, high, finest)
    ]
    return Column(
        title, _each(draw, predictions), _each(draw, truths), Legend(scale_NC=pictures.depth_scale(), ticks=ticks)
    )


def directions(title: str, predictions: Maps, truths: Maps) -> Column:
    """Unit vectors `[H, W, 3]`, (n + 1) / 2 in RGB."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])[None]
    colours = [tuple(colour) for colour in pictures.picture_normals(axes)[0].tolist()]
    legend = Legend(list(zip(colours, ["+x", "+y", "+z", "-x", "-y", "-z"])))
    draw = pictures.picture_normals
    return Column(title, _each(draw, predictions), _each(draw, truths), legend)


def colours(title: str, low: float, high: float, predictions: Maps, truths: Maps) -> Column:
    """Vectors `[H, W, C]` as colours, each of the first three channels from `low`, dark, to `high`, bright."""

    def draw(vectors_HWC: np.ndarray) -> np.ndarray:
        return pictures.picture_vectors(vectors_HWC, low, high)

    legend = Legend([((0, 0, 0), f"{low:g}"), (PAPER, f"{high:g} in every channel")])
    return Column(title, _each(draw, predictions), _each(draw, truths), legend)


def probability(title: str, draw: Callable[..., np.ndarray], predictions: Maps, truths: Maps) -> Column:
    """Probabilities of one class, uint8 `[H, W]`, beside labels of 0, 1 and ignore.

    `draw` is `pictures.picture_saliency` or `picture_edge`, or any that takes a map and what of it is to be hatched.
    """

    def draw_label(label: np.ndarray) -> np.ndarray:
        return draw(np.where(label == 1, 255, 0).astype(np.uint8), label == pictures.IGNORE)

    scale_NC = draw(np.arange(256, dtype=np.uint8)[None])[0]
    legend = Legend(scale_NC=scale_NC, ticks=[(0, "0"), (0.5, "probability"), (1, "1")])
    return Column(title, _each(draw, predictions), _each(draw_label, truths), legend)


def _each(draw: Draw, maps: Maps) -> list[np.ndarray | None]:
    return [None if values is None else draw(values) for values in maps]
