"""Which images of a set are drawn: the same on any number of ranks."""

from types import SimpleNamespace

import numpy as np
import pytest

from fgmoe_dist.evaluation.painter import Painter
from fgmoe_dist.tasks.depth import Depth


def drawn(folder, world, samples, pictures):
    """The images that `world` ranks draw, each given its part of the set."""
    for rank in range(world):
        painter = Painter([Depth()], folder, pictures, samples, SimpleNamespace(rank=rank, world=world))
        for index in range(rank * samples // world, (rank + 1) * samples // world):
            sample = {"id": str(index), "image": np.zeros((4, 5, 3), np.uint8)}
            painter.update(sample, {"depth": np.ones((4, 5), np.float32)})
    return sorted(int(path.stem) for path in folder.glob("*.png"))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_they_are_spread_evenly_over_the_set(tmp_path, world):
    assert drawn(tmp_path, world, samples=11, pictures=3) == [0, 3, 7]


def test_more_pictures_than_images_and_none(tmp_path):
    assert drawn(tmp_path / "a", 1, samples=2, pictures=8) == [0, 1]
    assert drawn(tmp_path / "b", 1, samples=2, pictures=0) == []
