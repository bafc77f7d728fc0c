"""The best, the median and the worst image of a task, prediction beside truth."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fgmoe_dist.drawing.columns import Column
from fgmoe_dist.evaluation.predictions import read_prediction
from fgmoe_dist.evaluation.score_files import Part, Scored
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.tasks import Task

WIDTH = 480  # pixels of an embedded picture, at most


@dataclass(frozen=True)
class Example:
    """An image of the page: `word` is best, median or worst; pictures are data URIs, the truth's may be missing."""

    word: str
    image_id: str
    metric: str
    value: float
    image: str
    prediction: str
    truth: str


@dataclass(frozen=True)
class Swatch:
    colour: str
    word: str


@dataclass(frozen=True)
class Scale:
    """A colour bar as a data URI, and words at shares 0..1 of its length."""

    bar: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Examples:
    images: Sequence[Example]
    swatches: Sequence[Swatch]
    scale: Scale | None


def ranking(task: Task, meter: Meter, scored: Scored) -> list[tuple[str, float]]:
    """(id, value) of every image with a value, best first by the metric that ranks single images; ties by id."""
    values = [
        (id_, metrics[task.name][meter.image_metric]) for id_, metrics in scored.images.items() if task.name in metrics
    ]
    sign = 1 if task.lower_is_better else -1
    return sorted((v for v in values if math.isfinite(v[1])), key=lambda v: (sign * v[1], v[0]))


def places(count: int) -> dict[int, str]:
    """Which places of a ranking are shown, and their names; fewer where there are fewer images."""
    return dict(sorted({count - 1: "worst", (count - 1) // 2: "median", 0: "best"}.items())) if count else {}


def examples(
    task: Task,
    meter: Meter,
    ranked: Sequence[tuple[str, float]],
    parts: Sequence[Part],
    predictions: Path,
) -> Examples:
    """The images at `places` of the ranking, read again and drawn on one scale."""
    if not ranked:
        return Examples([], [], None)
    chosen = [(word, *ranked[place]) for place, word in places(len(ranked)).items()]
    samples = [_sample(parts, id_, task.name) for _, id_, _ in chosen]
    predicted = [read_prediction(predictions, task, id_) for _, id_, _ in chosen]
    drawn = task.column(predicted, [sample[meter.label] for sample in samples])
    items = [
        Example(word, id_, meter.image_metric, value, *map(picture_uri, (sample["image"], prediction, truth)))
        for (word, id_, value), sample, prediction, truth in zip(chosen, samples, drawn.predictions, drawn.truths)
    ]
    return Examples(items, *_legend(drawn))


def _sample(parts: Sequence[Part], id_: str, task: str) -> dict:
    part = next(part for part in parts if id_ in part.ids)
    return next(iter(replace(part, ids=(id_,)).samples([task])))


def _legend(drawn: Column) -> tuple[list[Swatch], Scale | None]:
    swatches = [Swatch("#{:02x}{:02x}{:02x}".format(*colour), word) for colour, word in drawn.legend.swatches]
    scale_NC = drawn.legend.scale_NC
    return swatches, None if scale_NC is None else Scale(picture_uri(scale_NC[None]), drawn.legend.ticks)


def picture_uri(picture_HWC: np.ndarray) -> str:
    """A picture as a data URI, at most `WIDTH` wide, as PNG or JPEG, whichever is shorter."""
    image = Image.fromarray(np.ascontiguousarray(picture_HWC))
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    files = {kind: io.BytesIO() for kind in ("png", "jpeg")}
    image.save(files["png"], "png", optimize=True)
    image.save(files["jpeg"], "jpeg", quality=88, subsampling=0)
    kind = min(files, key=lambda kind: files[kind].tell())
    return f"data:image/{kind};base64,{base64.b64encode(files[kind].getvalue()).decode()}"
