"""What several tests share: one tiny data set of rendered rooms in shards, made once a session."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.runs import Runs

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the cores are the other workers' too

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported, here and on the ranks

TRAIN, VAL, SIZE_HW = 8, 4, (112, 140)


@dataclass(frozen=True)
class Shards:
    """Folders of shards of one layout."""

    train: Path
    val: Path


def _shards(layout: str, root: Path) -> Shards:
    from fgmoe_dist.data.layouts import open_layout
    from fgmoe_dist.data.shards import build_shards
    from fgmoe_dist.rooms.write import write_rooms

    write_rooms(layout, root / "rooms", TRAIN, VAL, seed=3, size=SIZE_HW, workers=1)
    for split in ("train", "val"):
        build_shards(open_layout(layout, root / "rooms"), split, root / split, samples_per_shard=2)
    return Shards(root / "train", root / "val")


@pytest.fixture(scope="session")
def nyud_shards(tmp_path_factory) -> Shards:
    """8 training and 4 validation rooms of 112 x 140 in the NYUDv2 layout: semseg, depth, normals, edge."""
    return _shards("nyud", tmp_path_factory.mktemp("nyud"))


@pytest.fixture(scope="session")
def pascal_shards(tmp_path_factory) -> Shards:
    """The same in the PASCALContext layout: semseg, human_parts, sal, normals, edge."""
    return _shards("pascal", tmp_path_factory.mktemp("pascal"))


@pytest.fixture
def runs(nyud_shards, tmp_path) -> Runs:
    """Starts tiny runs on the NYUD rooms below the test's own folder."""
    return Runs(tmp_path, nyud_shards.train, nyud_shards.val)
