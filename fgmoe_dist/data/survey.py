"""What labels a split has: in how many images, on how many pixels, with which values.

The builder counts it from the shards it wrote, prints it, keeps it in `index.json`, and refuses a split whose labels
cannot be meant. What that is each task knows (`Task.doubt_labels`).

Shapes: N values of an integer map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fgmoe_dist.data import codec
from fgmoe_dist.data.shardset import Shard, read_shard
from fgmoe_dist.data.sizes import image_size
from fgmoe_dist.labels import IntegerMap, Label
from fgmoe_dist.tasks import KINDS, TASKS, DatasetInfo, create_tasks

MOST_NAMED = 6  # classes that a line names


@dataclass
class Tally:
    """The labels of one task in some images."""

    images: int = 0
    pixels: int = 0
    valid: int = 0
    count_N: np.ndarray | int = 0  # pixels of each value of an integer map
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    medians: list[float] = field(default_factory=list)  # of each image's values

    def add(self, label: Label, native: np.ndarray) -> None:
        """Count one image's label."""
        valid_HW = label.valid(native)
        self.images += 1
        self.pixels += valid_HW.size
        self.valid += int(valid_HW.sum())
        if not valid_HW.any():
            return
        value = native[valid_HW]
        if isinstance(label, IntegerMap):
            self.count_N = self.count_N + np.bincount(value, minlength=label.count)
            return
        self.low, self.high = min(self.low, float(value.min())), max(self.high, float(value.max()))
        self.total += float(value.mean(dtype=np.float64)) * len(value)
        self.medians.append(float(np.median(value)))

    def merge(self, other: Tally) -> None:
        self.images += other.images
        self.pixels += other.pixels
        self.valid += other.valid
        self.count_N = self.count_N + other.count_N
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total
        self.medians += other.medians

    def figures(self, label: Label) -> dict[str, Any]:
        """As `index.json` has it: `images` with the label, the share of their `pixels` that have it, and either the
        `shares` of the values, or the `low`est, `high`est and `mean` value, and the `median` of all images' medians.
        """
        found: dict[str, Any] = {"images": self.images, "pixels": _round(self.valid / max(self.pixels, 1))}
        if isinstance(label, IntegerMap):
            count_N = np.zeros(label.count) + self.count_N
            return found | {"shares": [_round(share) for share in count_N / max(self.valid, 1)]}
        if not self.valid:
            return found
        values = {
            "low": self.low,
            "high": self.high,
            "mean": self.total / self.valid,
            "median": np.median(self.medians),
        }
        return found | {name: _round(value) for name, value in values.items()}


@dataclass
class Survey:
    """Some images: how many, the largest height and width among them, and a tally for each task."""

    tallies: dict[str, Tally]
    images: int = 0
    largest_hw: tuple[int, int] = (0, 0)

    def merge(self, other: Survey) -> None:
        self.images += other.images
        self.largest_hw = tuple(map(max, self.largest_hw, other.largest_hw))
        for task, tally in other.tallies.items():
            self.tallies[task].merge(tally)

    def facts(self, labels: Mapping[str, Label]) -> dict[str, Any]:
        """What `index.json` has of it."""
        tasks = {task: tally.figures(labels[task]) for task, tally in self.tallies.items()}
        return {"largest": list(self.largest_hw), "survey": tasks}


def survey_shard(shard: Shard, tasks: Iterable[str]) -> Survey:
    """Count the labels of a written shard; `BadSample` if it cannot be read."""
    survey = Survey({task: Tally() for task in tasks})
    for entries in read_shard(shard).values():
        survey.images += 1
        survey.largest_hw = tuple(map(max, survey.largest_hw, image_size(*entries["image"])))
        for task, tally in survey.tallies.items():
            if task in entries:
                stored = codec.decode(task, *entries[task], shard.labels)
                tally.add(shard.labels[task], codec.native(task, stored, shard.labels))
    return survey


def doubts(info: DatasetInfo, survey: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By task, why the labels that were found cannot be meant."""
    # A data set may have a new kind of label, of which nobody has made a task yet.
    known = [task for task in survey if task in TASKS or info.definitions[task]["kind"] in KINDS]
    found = {task.name: task.doubt_labels(survey[task.name]) for task in create_tasks(known, info)}
    return {task: reason for task, reason in found.items() if reason}


def lines(survey: Mapping[str, Mapping[str, Any]], images: int, classes: Mapping[str, Sequence[str]]) -> list[str]:
    """What `index.json` says of the labels, in words: a line for each task."""
    return [f"  {task}: {_line(found, images, classes.get(task))}" for task, found in survey.items()]


def _line(found: Mapping[str, Any], images: int, names: Sequence[str] | None) -> str:
    text = f"{found['images']} of {images} images"
    if not found["images"]:
        return text
    text += f", {_percent(found['pixels'])} of their pixels"
    if not found["pixels"]:
        return text
    if "shares" not in found:
        return (
            f"{text}, {found['low']:.4g} to {found['high']:.4g}, mean {found['mean']:.4g}, median {found['median']:.4g}"
        )
    if names is None:
        return f"{text}, {_percent(found['shares'][1])} of these foreground"
    order = sorted(range(len(names)), key=lambda n: -found["shares"][n])
    present = [n for n in order if found["shares"][n] > 0]
    named = ", ".join(f"{names[n]} {_percent(found['shares'][n])}" for n in present[:MOST_NAMED])
    text += f": {named}" + (f" and {len(present) - MOST_NAMED} more" if len(present) > MOST_NAMED else "")
    absent = [names[n] for n in order if n not in set(present)]
    shown = ", ".join(absent[:MOST_NAMED]) + (", ..." if len(absent) > MOST_NAMED else "")
    return text + (f"; none of {len(absent)} {'class' if len(absent) == 1 else 'classes'}: {shown}" if absent else "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _round(value: float) -> float:
    """Six digits: what a person reads, and the same on every machine."""
    return float(f"{value:.6g}")
