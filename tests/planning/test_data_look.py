"""What a dry run sees of the data, against a set whose labels are known."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fgmoe_dist.data.augment import TrainTransform
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import train_batches
from fgmoe_dist.errors import UserError
from fgmoe_dist.planning.data_look import count_labels, draw_batch
from fgmoe_dist.tasks import create_tasks

NAMES = ["semseg", "depth", "normals", "edge"]


def test_labels_are_counted_and_no_more_images_than_asked_for(nyud_shards):
    shards = ShardSet.open(nyud_shards.train)
    tasks = create_tasks(NAMES, shards)
    assert str(count_labels(shards, tasks)) == "of the first 8 images: semseg 8, depth 8, normals 8, edge 8"
    assert count_labels(shards, tasks, most=3).images == 3


@pytest.fixture
def kitchen(tmp_path):
    """Five images; `a` and `b` have a depth, that of `b` without a valid pixel; `c` has a mask."""
    for folder in ("images", "depth", "sal"):
        (tmp_path / folder).mkdir()
    for id_ in "abcde":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"images/{id_}.png")
    np.save(tmp_path / "depth/a.npy", np.ones((8, 8), np.float32))
    np.save(tmp_path / "depth/b.npy", np.zeros((8, 8), np.float32))
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "sal/c.png")
    (tmp_path / "all.txt").write_text("a\nb\nc\nd\ne\n")
    description = {"name": "kitchen", "image": {"file": "images/{id}.png"}, "splits": {"train": "all.txt"},
                   "tasks": {"depth": {"file": "depth/{id}.npy"}, "sal": {"file": "sal/{id}.png"}}}  # fmt: skip
    (tmp_path / "k.yaml").write_text(json.dumps(description))
    build_shards(open_layout(tmp_path / "k.yaml"), "train", tmp_path / "train", samples_per_shard=2)
    return ShardSet.open(tmp_path / "train")


def test_a_label_counts_where_it_has_a_valid_pixel(kitchen):
    counts = count_labels(kitchen, create_tasks(["depth", "sal"], kitchen))
    assert (counts.images, counts.labelled, counts.unreadable) == (5, {"depth": 1, "sal": 1}, 0)


def test_a_task_without_any_label_is_no_task(kitchen):
    first = [id_ for shard in kitchen.shards for id_ in shard.ids][:2]
    none = ", ".join(task for task, id_ in (("depth", "a"), ("sal", "c")) if id_ not in first)
    with pytest.raises(UserError, match=f"none of the first 2 images has a label for {none}; correct the patterns"):
        count_labels(kitchen, create_tasks(["depth", "sal"], kitchen), most=2)


def test_what_cannot_be_read_is_counted(kitchen, tmp_path):
    shutil.copytree(tmp_path / "train", tmp_path / "cut")
    first = sorted((tmp_path / "cut").glob("*.tar"))[1]
    first.write_bytes(first.read_bytes()[:-2000])
    counts = count_labels(ShardSet.open(tmp_path / "cut"), create_tasks(["depth"], kitchen))
    assert (counts.images, counts.labelled, counts.unreadable) == (5, {"depth": 1}, 2)
    assert str(counts).endswith("; 2 cannot be read")


def test_a_batch_is_drawn_as_training_sees_it(nyud_shards, tmp_path):
    shards, mean, std = ShardSet.open(nyud_shards.train), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    transform = TrainTransform((112, 144), mean, std, NAMES, labels=shards.labels)
    batch = next(
        train_batches(shards, NAMES, batch_size=2, micro_batch_size=2, rank=0, world=1, seed=0, transform=transform)
    )
    before = {name: batch[name].clone() for name in ("image", *NAMES)}
    path = draw_batch(batch, SimpleNamespace(mean=mean, std=std), create_tasks(NAMES, shards), tmp_path / "x/batch.png")
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] > 5 * 300 and picture.std() > 10
    assert all(torch.equal(batch[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())
