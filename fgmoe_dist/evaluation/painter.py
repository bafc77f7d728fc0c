"""Panels of some images while a set is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fgmoe_dist.drawing.panel import panel
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.tasks import Task


class Painter:
    """Draws images that are evenly spread over the whole set, each on the rank that evaluates it.

    Args:
        tasks: what to draw.
        folder: where `<id>.png` goes.
        pictures: how many, over all ranks.
        samples: images in the whole set.
        ranks: this rank sees its share of them, in order.
    """

    def __init__(self, tasks: Sequence[Task], folder: Path, pictures: int, samples: int, ranks: Ranks):
        self.tasks, self.folder = tasks, folder
        self._pictured = {picture * samples // pictures for picture in range(pictures)}
        self._next = ranks.rank * samples // ranks.world

    def update(self, sample: Mapping, predictions: Mapping[str, np.ndarray]) -> None:
        if self._next in self._pictured:
            path = self.folder / f"{sample['id']}.png"
            panel(sample["image"], predictions, sample, self.tasks, path, sample["id"])
        self._next += 1
