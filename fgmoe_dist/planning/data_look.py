"""What a dry run tells of the training data: how many images have which label, and an augmented batch as a picture.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgmoe_dist.data.shardset import BadSample, ShardSet, decode_sample, read_shard
from fgmoe_dist.drawing.panel import Scene, label_sheet
from fgmoe_dist.encoders.frozen import FrozenEncoder
from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks import Task

LOOKED_AT = 100  # images


@dataclass(frozen=True)
class Counts:
    """Of so many images: how many have a pixel with a label, by task, and how many cannot be read."""

    images: int
    labelled: dict[str, int]
    unreadable: int

    def __str__(self) -> str:
        told = ", ".join(f"{task} {count}" for task, count in self.labelled.items())
        bad = f"; {self.unreadable} cannot be read" if self.unreadable else ""
        return f"of the first {self.images} images: {told}{bad}"


def count_labels(shards: ShardSet, tasks: list[Task], most: int = LOOKED_AT) -> Counts:
    """UserError where none of the images looked at has a label of some task: its loss would be 0 all along."""
    labelled, images, unreadable = dict.fromkeys((task.name for task in tasks), 0), 0, 0
    for sample in _samples(shards, [task.name for task in tasks], most):
        images += 1
        unreadable += sample is None
        for task in tasks if sample is not None else ():
            if task.name in sample:
                native = task.label.native(sample[task.name])
                labelled[task.name] += bool(task.label.valid(native).any())
    if none := [task for task, count in labelled.items() if not count]:
        raise UserError(
            f"data.train: none of the first {images} images has a label for {', '.join(none)}; correct the patterns or"
            " values in the data set's description and build its shards again, or leave it out of tasks"
        )
    return Counts(images, labelled, unreadable)


def _samples(shards: ShardSet, keys: list[str], most: int) -> Iterator[dict | None]:
    """The first samples of a set, None for one that cannot be read."""
    keys = [*(["features"] if shards.cache else []), *keys]
    left = most
    for shard in shards.shards:
        try:
            entries = read_shard(shard)
        except BadSample as fault:
            entries = dict.fromkeys(range(fault.samples))
        for id_, entry in list(entries.items())[:left]:
            left -= 1
            try:
                yield decode_sample(shard, id_, entry, keys) if entry is not None else None
            except BadSample:
                yield None
        if left <= 0:
            return


def draw_batch(batch: dict, encoder: FrozenEncoder, tasks: list[Task], path: Path) -> Path:
    """Draws a batch as training sees it: images after augmentation, each task's labels beside them."""
    scenes = [
        Scene(_picture(image_3HW, encoder), {}, {task.name: _label(task, batch[task.name][i]) for task in tasks}, id_)
        for i, (image_3HW, id_) in enumerate(zip(batch["image"], batch["id"]))
    ]
    label_sheet(scenes, tasks, path)
    return path


def _picture(image_3HW: Tensor, encoder: FrozenEncoder) -> np.ndarray:
    """uint8 RGB of what was normalised."""
    mean_311, std_311 = (torch.tensor(value).view(3, 1, 1) for value in (encoder.mean, encoder.std))
    rgb_3HW = (image_3HW.cpu() * std_311 + mean_311).clamp(0, 1) * 255
    return rgb_3HW.round().byte().permute(1, 2, 0).numpy()


def _label(task: Task, label: Tensor) -> np.ndarray:
    """A label of a batch, `[H, W]` or `[C, H, W]`, in its native form."""
    array = label.cpu().numpy()
    if array.dtype == np.int64:
        return array.astype(task.label.dtypes[0])
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
