"""A described data set: what each encoding means, what may be missing, and the way through shards to batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fgmoe_dist.data.augment import TrainTransform
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards, verify_shards
from fgmoe_dist.data.stream import evaluation_samples, train_batches
from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks import create_tasks
from tests.archives import save

EXAMPLE = Path(__file__).parents[2] / "configs/datasets/example.yaml"
HW = (6, 8)


@pytest.fixture
def kitchen(tmp_path):
    """The example's folders with four images; only `a` has every label, and only `b` is a JPEG."""
    root = tmp_path / "kitchen"
    for folder in ("images", "lists", "semseg", "parts", "salient", "normals", "depth", "regions"):
        (root / folder).mkdir(parents=True)
    (root / "lists/train.txt").write_text("a\nb\nc\n")
    (root / "lists/val.txt").write_text("d\n")
    for number, id_ in enumerate("abcd"):
        picture = np.random.default_rng(number).integers(0, 256, (*HW, 3))
        save(root / "images" / f"{id_}.{'jpg' if id_ == 'b' else 'png'}", picture)
    save(root / "semseg/a.png", np.tile([0, 1, 2, 3, 4, 255, 1, 1], (6, 1)))
    save(root / "semseg/d.png", np.full(HW, 2))
    save(root / "parts/a.png", np.tile([0, 3, 4, 7, 9, 255, 0, 0], (6, 1)))
    save(root / "salient/a.png", np.tile([0, 127, 128, 255, 0, 0, 0, 0], (6, 1)))
    save(root / "normals/a.png", np.tile([[255, 128, 128], [0, 0, 0], [128, 0, 128], [128, 128, 255]] * 2, (6, 1, 1)))
    depth = np.tile([0, 500, 2500, 65535, 1, 1, 1, 1], (6, 1)).astype(np.uint16)
    Image.fromarray(depth).save(root / "depth/a.png")
    region = np.full(HW, 300, np.uint16)
    region[:, 4:] = 700
    Image.fromarray(region).save(root / "regions/a.png")
    (root / "kitchen.yaml").write_text(EXAMPLE.read_text())
    return root


def _change(root, change):
    values = yaml.safe_load((root / "kitchen.yaml").read_text())
    change(values)
    (root / "kitchen.yaml").write_text(yaml.safe_dump(values))
    return root / "kitchen.yaml"


def test_the_example_means_what_its_comments_say(kitchen):
    layout = open_layout(kitchen / "kitchen.yaml")
    assert (layout.dataset, layout.splits, layout.ids("val")) == ("kitchen", ("train", "val"), ["d"])
    assert layout.classes == {"semseg": ("wall", "floor", "table", "cup"), "human_parts": ("background", "arm", "hand")}
    sample = layout.read("a")
    assert sample["semseg"][0].tolist() == [255, 0, 1, 2, 3, 255, 0, 0]
    assert sample["human_parts"][0].tolist() == [0, 1, 1, 2, 255, 255, 0, 0]
    assert sample["sal"][0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(sample["depth"][0], [0, 0.5, 2.5, 0, 0.001, 0.001, 0.001, 0.001], rtol=1e-6)
    # axes [x, -y, -z]: red is x as it is, green and blue point the other way
    truth = [[1, 0, 0], [np.nan] * 3, [0, 1, 0], [0, 0, -1]] * 2
    np.testing.assert_allclose(sample["normals"][0], truth, atol=0.01)
    # Columns 3 and 4 touch the boundary; thinned it is one line of one pixel.
    assert sample["edge"].sum(axis=1)[1:-1].tolist() == [1] * 4 and set(np.nonzero(sample["edge"])[1]) <= {3, 4}
    assert np.unique(np.nonzero(sample["boundary"])[1]).tolist() == [3]


def test_labels_that_are_not_there_are_absent_and_give_no_loss(kitchen, tmp_path):
    layout = open_layout(kitchen / "kitchen.yaml")
    assert layout.read("b").keys() == {"id", "image"} and layout.read("d").keys() == {"id", "image", "semseg"}
    shardset = build_shards(layout, "train", tmp_path / "train", workers=1)
    assert verify_shards(tmp_path / "train") == []
    transform = TrainTransform((8, 8), (0.5,) * 3, (0.5,) * 3, layout.tasks)
    batch = next(
        train_batches(
            shardset, layout.tasks, batch_size=3, micro_batch_size=3, rank=0, world=1, seed=0, transform=transform
        )
    )
    for task in create_tasks(layout.tasks, shardset):
        for index, id_ in enumerate(batch["id"]):
            prediction = torch.randn(1, task.channels, 8, 8, requires_grad=True)
            loss = task.loss(prediction, batch[task.name][index : index + 1])
            loss.backward()
            assert torch.isfinite(prediction.grad).all()
            if id_ != "a":
                assert loss == 0 and not prediction.grad.any()


def test_any_subset_of_the_tasks_goes_through_shards(kitchen, tmp_path):
    path = _change(kitchen, lambda values: [values["tasks"].pop(task) for task in ("semseg", "normals", "edge", "sal")])
    layout = open_layout(path)
    shardset = build_shards(layout, "train", tmp_path / "train")
    assert shardset.tasks == ("human_parts", "depth") and shardset.shards[0].name == "kitchen-train-000000.tar"
    for sample, _ in evaluation_samples(shardset, shardset.tasks, transform=lambda sample: sample["image"]):
        truth = layout.read(sample["id"])
        assert sample.keys() == truth.keys()
        for key in truth.keys() - {"id"}:
            np.testing.assert_array_equal(sample[key], truth[key])


def test_another_meaning_of_the_same_files_is_another_set(kitchen, tmp_path):
    build_shards(open_layout(kitchen / "kitchen.yaml"), "train", tmp_path / "train")
    build_shards(open_layout(kitchen / "kitchen.yaml"), "train", tmp_path / "train")
    path = _change(kitchen, lambda values: values["tasks"]["depth"].update(unit=0.01))
    with pytest.raises(UserError, match="already holds other shards"):
        build_shards(open_layout(path), "train", tmp_path / "train")
    save(kitchen / "salient/b.png", np.zeros(HW))  # a label added later is noticed too
    path = _change(kitchen, lambda values: values["tasks"]["depth"].update(unit=0.001))
    with pytest.raises(UserError, match="already holds other shards"):
        build_shards(open_layout(path), "train", tmp_path / "train")


def test_arrays_and_label_encodings(kitchen):
    def change(values):
        tasks = values["tasks"]
        tasks["depth"].update(file="depth/{id}.npy", unit=2.0)
        tasks["normals"].update(file="normals/{id}.npy", axes=["z", "x", "-y"])
        tasks["sal"].update(encoding="labels")
        tasks["edge"].update(encoding="labels", file="edges/{id}.png")

    (kitchen / "edges").mkdir()
    save(kitchen / "salient/a.png", np.tile([0, 1, 255, 0], (6, 2)))
    edge_HW = np.zeros(HW)
    edge_HW[:, 2:5], edge_HW[0, 7] = 1, 255
    save(kitchen / "edges/a.png", edge_HW)
    np.save(kitchen / "depth/a.npy", np.tile([1.5, np.nan, -1, 0], (6, 2)))
    np.save(kitchen / "normals/a.npy", np.tile([[2.0, 0, 0], [0, 3, 0], [0, 0, 1], [0, 0, 0]] * 2, (6, 1, 1)))
    sample = open_layout(_change(kitchen, change)).read("a")
    assert sample["depth"][0, :4].tolist() == [3, 0, 0, 0]
    # the file's channels are z, x, -y; so (2, 0, 0) is z, (0, 3, 0) is x, (0, 0, 1) is -y
    np.testing.assert_array_equal(sample["normals"][0, :4], [[0, 0, 1], [1, 0, 0], [0, -1, 0], [np.nan] * 3])
    assert sample["sal"][0, :4].tolist() == [0, 1, 255, 0]
    assert sample["edge"][0].tolist() == [0, 0, 1, 1, 1, 0, 0, 255]
    assert sample["boundary"].sum(axis=1)[1:-1].tolist() == [1] * 4  # thinned, ignored pixels left out


def test_a_list_of_patterns_takes_the_first_that_exists(kitchen):
    save(kitchen / "images/a.jpg", np.zeros((*HW, 3)))
    layout = open_layout(kitchen / "kitchen.yaml")
    assert layout.image_path("a").name == "a.jpg" and layout.image_path("c").name == "c.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("image"), "image: Field required"),
        (lambda v: v["tasks"]["semseg"].update(file="semseg.png"), r"tasks.semseg.file: write \{id\}"),
        (lambda v: v["tasks"]["semseg"].update(clases=[1]), "tasks.semseg.clases: no such key"),
        (lambda v: v["tasks"]["normals"].update(axes=["x", "x", "z"]), "tasks.normals.axes: name each of x, y, z once"),
        (lambda v: v["tasks"]["depth"].update(unit=0), "tasks.depth.unit: Input should be greater than 0"),
        (lambda v: v["tasks"]["depth"].update(file="dpth/{id}.png"), "tasks.depth.file dpth/{id}.png: no image of any"),
        (lambda v: v.update(tasks={}), "tasks is empty"),
        (lambda v: v.update(name="My Kitchen"), "name: String should match"),
        (lambda v: v.update(root="nowhere"), "root .*nowhere is no folder"),
        (lambda v: v["splits"].update(train="train.txt"), "cannot read the id list .*train.txt"),
    ],
)
def test_mistakes_are_named_in_one_line(kitchen, change, message):
    with pytest.raises(UserError, match=message) as caught:
        open_layout(_change(kitchen, change))
    assert "\n" not in str(caught.value)


def test_values_without_a_class_and_unknown_splits_are_named(kitchen):
    layout = open_layout(kitchen / "kitchen.yaml")
    save(kitchen / "semseg/a.png", np.full(HW, 5))
    with pytest.raises(UserError, match=r"semseg/a.png holds value 5, which is no class: name it under classes"):
        layout.read("a")
    with pytest.raises(UserError, match="split is 'test': use one of train, val"):
        layout.ids("test")
    with pytest.raises(UserError, match="needs a root"):
        open_layout("nyud")
