"""Which labels a data set has, and a kind of label that nobody foresaw on its way through shards to batches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fgmoe_dist import labels
from fgmoe_dist.data.augment import TrainTransform
from fgmoe_dist.data.layouts import Layout
from fgmoe_dist.data.shards import build_shards, verify_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import evaluation_samples, train_batches
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import BinaryMap, BoundaryMap, ClassMap, Label, ScalarMap, VectorMap
from fgmoe_dist.tasks.labelling import labels_of

HW = (6, 8)


def test_the_labels_of_a_data_set():
    found = labels_of(
        ("semseg", "edge", "rust", "heat", "creases", "tint", "species"),
        {"semseg": ["a", "b"], "species": [str(n) for n in range(400)]},
        {
            "rust": {"kind": "binary"},
            "heat": {"kind": "scalar", "unit": "K", "metric": "rmse"},
            "creases": {"kind": "boundary", "max_dist": 0.01},
            "tint": {"kind": "vectors", "channels": 4, "range": [0, 2], "unit": False, "metric": "rmse"},
            "species": {"kind": "classes"},
        },
    )
    assert found == {
        "semseg": ClassMap(2), "edge": BoundaryMap(), "rust": BinaryMap(), "heat": ScalarMap("K"),
        "creases": BoundaryMap(), "tint": VectorMap(4, range=(0, 2)), "species": ClassMap(400),
        "boundary": BinaryMap(), "creases_boundary": BinaryMap(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "classes", "definitions", "message"),
    [
        (["glow"], {}, {}, "task 'glow' is none of semseg, .*: the data set must define its kind of label"),
        (
            ["glow"],
            {},
            {"glow": {"kind": "keypoints"}},
            "task glow: its kind of label is 'keypoints': use one of classes",
        ),
        (["glow"], {}, {"glow": {"kind": "vectors", "channels": 0}}, "task glow: channels is 0: give 1 to 128"),
        (["glow"], {}, {"glow": {"kind": "vectors", "channels": "three"}}, "task glow: .*not supported between"),
        (["glow"], {}, {"glow": {"kind": "scalar", "scales": "up"}}, "task glow: scales is 'up': use one of none"),
        (["glow"], {}, {"glow": {"kind": "classes"}}, "task glow: its classes have no names"),
        (["semseg"], {"semseg": []}, {}, "task semseg: there are 0 classes: name 1 to 65535"),
        (["id"], {}, {}, "task 'id': give another name"),
        (["../x"], {}, {}, "task '../x': give another name"),
        (
            ["edge", "boundary"],
            {},
            {"boundary": {"kind": "binary"}},
            "task 'boundary' has the name of the ground truth",
        ),
    ],
)
def test_what_makes_no_sense_is_named_in_one_line(tasks, classes, definitions, message):
    with pytest.raises(UserError, match=message) as caught:
        labels_of(tasks, classes, definitions)
    assert "\n" not in str(caught.value)


def test_a_batch_of_a_task_without_a_kind_is_refused():
    with pytest.raises(UserError, match="task 'keypoints' has no label of a known kind"):
        TrainTransform(HW, (0.5,) * 3, (0.5,) * 3, ["keypoints"])


@dataclass(frozen=True)
class Angle(Label):
    """Angles in whole degrees: an invention of this test. A flip mirrors them, 999 marks what has none."""

    turn: int = 360

    kind = "angle"
    dtypes, extensions, meaning, ignore = ("int16",), ("npy",), "npy: int16 [H, W] degrees, 999 = invalid", 999

    def empty(self, count, size_hw):
        return torch.full((count, *size_hw), self.ignore, dtype=torch.int16)

    def valid(self, label):
        return label != self.ignore

    def mirror(self, label_hw):
        return np.where(label_hw == self.ignore, label_hw, -label_hw % np.int16(self.turn))

    def strange(self, stored):
        return stored[(stored < 0) | ((stored >= self.turn) & (stored != self.ignore))]


class Compass(Layout):
    """A data set that is one class: images of noise, and the angle of each pixel."""

    dataset, tasks, classes, boundary_max_dist = "compass", ("heading",), {}, 0.01
    definitions = {"heading": {"kind": "angle", "turn": 180}}

    def _check_root(self):
        pass

    def ids(self, split):
        return ["a", "b", "c", "d"]

    def files(self, id_):
        return []

    def image_path(self, id_):
        return self.root / f"{id_}.png"

    def image(self, id_):
        return np.random.default_rng(ord(id_)).integers(0, 256, (*HW, 3), dtype=np.uint8)

    def read_labels(self, id_):
        angle_HW = np.full(HW, 30, np.int16)
        angle_HW[0] = 999
        return {"heading": angle_HW}


def test_a_new_kind_and_a_new_data_set_need_no_change_of_ours(tmp_path, monkeypatch):
    monkeypatch.setitem(labels.KINDS, "angle", Angle)
    layout = Compass(tmp_path)
    build_shards(layout, "train", tmp_path / "train")
    assert verify_shards(tmp_path / "train") == []
    shardset = ShardSet.open(tmp_path / "train")
    assert shardset.labels == {"heading": Angle(180)}
    for sample, _ in evaluation_samples(shardset, ["heading"], transform=lambda sample: sample["image"]):
        np.testing.assert_array_equal(sample["heading"], layout.read_labels(sample["id"])["heading"])
    transform = TrainTransform((8, 10), (0.5,) * 3, (0.5,) * 3, ["heading"], labels=shardset.labels)
    options = {"batch_size": 4, "micro_batch_size": 4, "rank": 0, "world": 1, "seed": 0}
    batch = next(train_batches(shardset, ["heading"], transform=transform, **options))
    assert batch["heading"].dtype == torch.int16
    assert set(batch["heading"].unique().tolist()) == {30, 150, 999}  # as it is, flipped, and padding
    with pytest.raises(UserError, match="compass train shards have no labels for semseg"):
        train_batches(shardset, ["semseg"], transform=transform, **options)
    monkeypatch.delitem(labels.KINDS, "angle")
    with pytest.raises(UserError, match=r"shard index .*index.json: task heading: its kind of label is 'angle': use"):
        ShardSet.open(tmp_path / "train")
