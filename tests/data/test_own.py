"""A described data set: what each encoding means, what may be missing, and the way through shards to batches."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fgmoe_dist.data.augment import EvalTransform, TrainTransform, train_transform, unpad
from fgmoe_dist.data.images import Fit
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.settings import Data
from fgmoe_dist.data.shards import build_shards, dump_sample, verify_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import evaluation_samples, train_batches
from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.tasks.labelling import KNOWN_KEYS
from tests.archives import save

EXAMPLE = Path(__file__).parents[2] / "configs/datasets/example.yaml"
HW = (6, 8)


@pytest.fixture
def kitchen(tmp_path):
    """The example's folders with four images; only `a` has every label, and only `b` is a JPEG."""
    root = tmp_path / "kitchen"
    folders = "images lists semseg parts salient normals depth regions material reflection disparity albedo creases"
    for folder in folders.split():
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
    save(root / "material/a.png", np.tile([0, 1, 2, 3, 254, 255, 0, 1], (6, 1)))
    save(root / "reflection/a.png", np.tile([0, 127, 128, 255, 0, 0, 0, 0], (6, 1)))
    Image.fromarray(np.tile([0, 16, 40, 65535], (6, 2)).astype(np.uint16)).save(root / "disparity/a.png")
    save(root / "albedo/a.png", np.tile([[255, 0, 51], [0, 0, 0], [102, 153, 204], [0, 0, 255]] * 2, (6, 1, 1)))
    crease_HW = np.zeros(HW)
    crease_HW[:, 2:5] = 255
    save(root / "creases/a.png", crease_HW)
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
    assert layout.classes == {
        "semseg": ("wall", "floor", "table", "cup"),
        "human_parts": ("background", "arm", "hand"),
        "material": ("wood", "metal", "glass"),
    }
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


def test_tasks_of_ones_own_mean_what_the_example_says(kitchen):
    layout = open_layout(kitchen / "kitchen.yaml")
    assert layout.tasks[6:] == ("material", "reflection", "disparity", "albedo", "creases")
    assert layout.definitions == {
        "material": {"kind": "classes"},
        "reflection": {"kind": "binary"},
        "disparity": {"kind": "scalar", "unit": "px", "metric": "rmse", "scales": "proportional"},
        "albedo": {"kind": "vectors", "channels": 3, "unit": False, "range": [0.0, 1.0], "metric": "rmse"},
        "creases": {"kind": "boundary", "max_dist": 0.01},
    }
    sample = layout.read("a")
    assert sample["material"][0].tolist() == [0, 1, 2, 255, 255, 255, 0, 1]
    assert sample["reflection"][0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert sample["disparity"].dtype == sample["albedo"].dtype == np.float32
    np.testing.assert_array_equal(sample["disparity"][0, :4], [np.nan, 1, 2.5, 65535 / 16])
    truth = [[1, 0, 0.2], [np.nan] * 3, [0.4, 0.6, 0.8], [0, 0, 1]]
    np.testing.assert_allclose(sample["albedo"][0, :4], truth, rtol=1e-6)
    assert sample["creases"][0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert sample["creases_boundary"].sum(axis=1)[1:-1].tolist() == [1] * 4  # thinned


def test_labels_that_are_not_there_are_absent_and_give_no_loss(kitchen, tmp_path):
    layout = open_layout(kitchen / "kitchen.yaml")
    assert layout.read("b").keys() == {"id", "image"} and layout.read("d").keys() == {"id", "image", "semseg"}
    shardset = build_shards(layout, "train", tmp_path / "train", workers=1)
    assert verify_shards(tmp_path / "train") == []
    names = [name for name in layout.tasks if name in KNOWN_KEYS]
    transform = TrainTransform((8, 8), (0.5,) * 3, (0.5,) * 3, names)
    batch = next(
        train_batches(shardset, names, batch_size=3, micro_batch_size=3, rank=0, world=1, seed=0, transform=transform)
    )
    for task in create_tasks(names, shardset):
        for index, id_ in enumerate(batch["id"]):
            prediction = torch.randn(1, task.channels, 8, 8, requires_grad=True)
            loss = task.loss(prediction, batch[task.name][index : index + 1])
            loss.backward()
            assert torch.isfinite(prediction.grad).all()
            if id_ != "a":
                assert loss == 0 and not prediction.grad.any()


def test_any_subset_of_the_tasks_goes_through_shards(kitchen, tmp_path):
    left_out = ("semseg", "normals", "edge", "sal", "material", "reflection", "albedo")
    path = _change(kitchen, lambda values: [values["tasks"].pop(task) for task in left_out])
    layout = open_layout(path)
    shardset = build_shards(layout, "train", tmp_path / "train")
    assert (
        shardset.tasks == ("human_parts", "depth", "creases", "disparity")
        and shardset.shards[0].name == "kitchen-train-000000.tar"
    )
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
        (lambda v: v.pop("image"), "image: field required"),
        (lambda v: v["tasks"]["semseg"].update(file="semseg.png"), r"tasks.semseg.file='semseg.png': write \{id\}"),
        (
            lambda v: v["tasks"]["semseg"].update(clases=[1]),
            "tasks.semseg.clases: no such key; did you mean tasks.semseg.classes",
        ),
        (
            lambda v: v["tasks"]["normals"].update(axes=["x", "x", "z"]),
            r"tasks.normals.axes=\['x', 'x', 'z'\]: name each of x, y, z once",
        ),
        (lambda v: v["tasks"]["depth"].update(unit=0), "tasks.depth.unit=0: input should be greater than 0"),
        (lambda v: v["tasks"]["depth"].update(file="dpth/{id}.png"), "tasks.depth.file dpth/{id}.png: no image of any"),
        (lambda v: v.update(tasks={}), "tasks is empty"),
        (lambda v: v["tasks"].update(sensei={"file": "x"}), r"tasks\.sensei: no such task.*needs a kind: classes \|"),
        (lambda v: v["tasks"].update(semsg={"file": "x"}), r"tasks\.semsg: no such task \(do you mean semseg\?\)"),
        (
            lambda v: v["tasks"].update(joints={"kind": "keypoints", "file": "x"}),
            "tasks.joints.kind: no kind 'keypoints'; use classes",
        ),
        (
            lambda v: v["tasks"]["disparity"].update(kind="scaler"),
            r"tasks\.disparity\.kind: no kind 'scaler' \(do you mean scalar\?\)",
        ),
        (
            lambda v: v["tasks"]["depth"].update(kind="classes"),
            "tasks.depth.kind: depth is of kind scalar, not classes",
        ),
        (
            lambda v: v["tasks"]["depth"].update(factor=2),
            "tasks.depth: give the metres .* as unit or as factor, not both",
        ),
        (lambda v: v["tasks"]["disparity"].update(unit=2), "tasks.disparity: unit is the number 2 and factor is given"),
        (lambda v: v["tasks"]["disparity"].update(metric="rsme"), "disparity: metric is rsme; use one of rmse, mae"),
        (lambda v: v["tasks"]["albedo"].update(metric="mean"), "albedo: metric is mean; use rmse"),
        (lambda v: v["tasks"]["disparity"].update(scales="up"), "tasks.disparity.scales='up': input should be 'none'"),
        (lambda v: v["tasks"]["albedo"].update(range=[1, 0]), "tasks.albedo: range: give the lowest value"),
        (lambda v: v["tasks"]["albedo"].update(invalid=[0]), "tasks.albedo: invalid: give one value for each of the 3"),
        (lambda v: v["tasks"]["albedo"].update(unit=True), "tasks.albedo: unit: directions have"),
        (lambda v: v["tasks"]["material"].update(classes=[]), r"tasks.material.classes=\[\]: name 1 to 65535"),
        (
            lambda v: v["tasks"]["semseg"].update(first=65535),
            "tasks.semseg: first: the last class would be value 65538",
        ),
        (
            lambda v: v["tasks"].update(image=v["tasks"].pop("mask", v["tasks"]["reflection"])),
            "task 'image': give another",
        ),
        (lambda v: v["tasks"].update(boundary=v["tasks"]["reflection"]), "task 'boundary' has the name of the ground"),
        (lambda v: v["tasks"].update({"My Task": v["tasks"]["reflection"]}), "task 'My Task': give another name"),
        (
            lambda v: (v["tasks"]["semseg"].update(clases=[1]), v["tasks"]["depth"].update(unit=0), v.pop("splits")),
            r"splits: field required; tasks\.depth\.unit=0: input.*; tasks\.semseg\.clases: no such key",
        ),
        (lambda v: v.update(name="My Kitchen"), "name=.My Kitchen.: string should match"),
        (lambda v: v.update(nmae=v.pop("name")), "name: field required; nmae: no such key; did you mean name"),
        (
            lambda v: v["tasks"]["depth"].update(invald=[1]),
            "tasks.depth.invald: no such key; did you mean tasks.depth.inv",
        ),
        (lambda v: v["tasks"].update(depht=v["tasks"].pop("depth")), r"tasks.depht: no such task \(do you mean depth"),
        (lambda v: v["tasks"]["albedo"].update(kind=["vectors"]), "tasks.albedo.kind: no kind \\['vectors'\\]"),
        (lambda v: v["tasks"].update(semseg=5), "tasks.semseg=5: give a mapping"),
        (lambda v: v["tasks"]["semseg"].update(first=0), "ignore: value 0 is the class wall"),
        (lambda v: v["tasks"]["semseg"].update(ignore=[4]), "ignore: value 4 is the class cup"),
        (lambda v: v["tasks"]["semseg"].update(classes=["a", "b", "a"]), "classes: a is named 2 times"),
        (lambda v: v["tasks"]["semseg"].update(classes=["a", " "]), "a class has no name"),
        (
            lambda v: v["tasks"]["semseg"].update(classes=["a", True]),
            "classes.1=True: input should be a valid string; in q",
        ),
        (
            lambda v: v["tasks"]["semseg"].update(classes={"a": 1, "b": 2}),
            "first=1: classes gives each class its values",
        ),
        (lambda v: v["tasks"]["human_parts"].update(first=0), "first=0: classes gives each class its values"),
        (
            lambda v: v["tasks"]["human_parts"].update(
                classes={"a": [0, 7], "b": 3, "c": 7, "d": [3, 4]}, ignore=[9, 4]
            ),
            "value 7 is both a and c.*; classes: value 3 is both b and d.*; ignore: value 4 is the class d",
        ),
        (
            lambda v: v["tasks"]["human_parts"].update(classes={"a": True}),
            "yaml: tasks.human_parts.classes: give a number, not a truth value$",
        ),
        (
            lambda v: v["tasks"]["human_parts"].update(classes={"a": -1}),
            "kitchen.yaml: tasks.human_parts.classes.a=-1: input should be greater[^;]*$",
        ),
        (lambda v: v["tasks"]["depth"].update(unit=float("inf")), "tasks.depth.unit=inf: input should be a finite"),
        (lambda v: v["tasks"]["depth"].update(unit=float("nan")), "tasks.depth.unit=nan: input should be a finite"),
        (lambda v: v["tasks"]["depth"].update(unit=True), "tasks.depth.unit=True: give a number"),
        (lambda v: (v["tasks"]["depth"].pop("unit"), v["tasks"]["depth"].update(factor=True)), "factor: give a number"),
        (lambda v: v["tasks"]["disparity"].update(unit=True), "tasks.disparity.unit=True: input should be a valid str"),
        (lambda v: v["tasks"]["albedo"].update(range=[0, float("inf")]), "range.1=inf: input should be a finite"),
        (lambda v: v["tasks"]["edge"].update(max_dist=float("nan")), "tasks.edge.max_dist=nan"),
        (lambda v: v.update(root="nowhere"), "root .*nowhere is no folder"),
        (lambda v: v["splits"].update(train="train.txt"), "cannot read the id list .*train.txt"),
    ],
)
def test_mistakes_are_named_in_one_line(kitchen, change, message):
    with pytest.raises(UserError, match=message) as caught:
        open_layout(_change(kitchen, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: kitchen", "name: kitchen\nname: hall", r"name is given twice \(lines 6 and 7\)"),
        ("    unit: 0.001", "    unit: 0.001\n    unit: 0.002", "tasks.depth.unit is given twice"),
        ("  depth:  ", "  sal: {file: 'x/{id}'}\n  depth:  ", "tasks.sal is given twice"),
        (
            "{background: 0, arm",
            "{background: 0, background: 1, arm",
            "tasks.human_parts.classes.background is given tw",
        ),
        ("[wall, floor, table, cup]", "[null, floor, table, cup]", "tasks.semseg.classes.0=None: input should be a"),
        ("    unit: 0.001", "    unit: 1:30", "tasks.depth.unit='1:30': input should be a valid number"),
    ],
)
def test_what_is_written_twice_or_in_two_meanings_is_refused(kitchen, old, new, message):
    text = (kitchen / "kitchen.yaml").read_text()
    assert old in text
    (kitchen / "kitchen.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        open_layout(kitchen / "kitchen.yaml")
    assert "\n" not in str(caught.value)


def test_words_of_a_description_are_taken_as_they_are_written(kitchen):
    text = (kitchen / "kitchen.yaml").read_text()
    for old, new in {
        "[wall, floor, table, cup]": "[no, yes, 010, 2024-01-01]",
        "{background: 0, arm: [3, 4], hand: 7}": "{off: 010, on: [1_1, 012], 1:30: 7}",
        "unit: 0.001": "unit: 1e-3",
        "invalid: [65535]": "invalid: [65_535, .nan]",
    }.items():
        assert old in text
        text = text.replace(old, new, 1)
    (kitchen / "kitchen.yaml").write_text(text)
    layout = open_layout(kitchen / "kitchen.yaml")
    assert layout.classes["semseg"] == ("no", "yes", "010", "2024-01-01")
    parts = layout.described["human_parts"]
    assert (parts.names, list(parts.values())) == (("off", "on", "1:30"), [[10], [11, 12], [7]])
    depth = layout.described["depth"]
    assert depth.unit == 0.001 and depth.invalid[0] == 65535


def test_a_default_gives_way_to_what_is_written(kitchen):
    """255 is ignored where nobody says otherwise; who names it as a class means the class."""

    def change(values):
        values["tasks"] = {"semseg": {"file": "semseg/{id}.png", "classes": {"a": [0, 1, 2, 3, 4], "b": 255}}}

    assert open_layout(_change(kitchen, change)).read("a")["semseg"][0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_values_without_a_class_and_unknown_splits_are_named(kitchen):
    layout = open_layout(kitchen / "kitchen.yaml")
    save(kitchen / "semseg/a.png", np.full(HW, 5))
    with pytest.raises(UserError, match=r"semseg/a.png holds value 5, which is no class: name it under classes"):
        layout.read("a")
    with pytest.raises(UserError, match="split is 'test': use one of train, val"):
        layout.ids("test")
    with pytest.raises(UserError, match="needs a root"):
        open_layout("nyud")


def test_a_description_of_known_tasks_says_what_it_always_said(kitchen):
    """What `index.json` of a set that was built before tasks were open was made with: it must still be known."""
    values = {
        "name": "kitchen",
        "root": ".",
        "image": {"file": "images/{id}.png"},
        "splits": {"train": "lists/train.txt"},
        "tasks": {
            "depth": {"kind": "scalar", "file": "depth/{id}.png", "unit": "1e-3"},  # 1e-3 is a word to YAML
            "semseg": {"file": ["semseg/{id}.png"], "classes": ["wall", "cup"], "first": 1},
            "sal": None,
        },
    }
    (kitchen / "old.yaml").write_text(yaml.safe_dump(values))
    layout = open_layout(kitchen / "old.yaml")
    assert layout.meaning() == (
        '{"name":"kitchen","image":{"file":"images/{id}.png"},"splits":{"train":"lists/train.txt"},"tasks":{"semseg":'
        '{"file":["semseg/{id}.png"],"classes":["wall","cup"],"first":1,"ignore":[255]},"human_parts":null,"sal":null,'
        '"normals":null,"depth":{"file":"depth/{id}.png","unit":0.001,"invalid":[0.0]},"edge":null}}'
    )
    assert layout.tasks == ("semseg", "depth") and layout.definitions == {}
    values["tasks"]["depth"] = {"file": "depth/{id}.png", "factor": 0.001}
    (kitchen / "old.yaml").write_text(yaml.safe_dump(values))
    assert open_layout(kitchen / "old.yaml").meaning() == layout.meaning()


def test_the_definitions_travel_with_the_shards_and_batches_follow_them(kitchen, tmp_path):
    layout = open_layout(kitchen / "kitchen.yaml")
    build_shards(layout, "train", tmp_path / "train", samples_per_shard=1)
    index = json.loads((tmp_path / "train/index.json").read_text())
    assert index["definitions"] == layout.definitions
    assert index["encodings"]["disparity"] == "npy: float32 [H, W] px, NaN = invalid"
    assert index["encodings"]["albedo"] == "npy: uint8 [H, W, 3], 0 + 1 x / 255; or float32, NaN = invalid"
    assert index["encodings"]["creases_boundary"] == "png: uint8 [H, W], 255 = ignore"
    shardset = ShardSet.open(tmp_path / "train")
    assert shardset.definitions == layout.definitions and shardset.labels == layout.labels
    assert verify_shards(tmp_path / "train") == []
    truth = layout.read("a")
    samples = {s["id"]: s for s, _ in evaluation_samples(shardset, shardset.tasks, transform=lambda s: s["image"])}
    assert samples["a"].keys() == truth.keys()
    for key in truth.keys() - {"id"}:
        np.testing.assert_array_equal(samples["a"][key], truth[key])
        assert samples["a"][key].dtype == truth[key].dtype
    assert {path.name for path in dump_sample(tmp_path / "train", "a", tmp_path / "dump")} >= {"a.creases_boundary.npy"}
    data = Data(image_size=(12, 16), augment=False)
    transform = train_transform(data, (0.5,) * 3, (0.5,) * 3, shardset.tasks, shardset.labels)
    batch = next(
        train_batches(
            shardset, shardset.tasks, batch_size=3, micro_batch_size=3, rank=0, world=1, seed=0, transform=transform,
            workers=1,
        )
    )  # fmt: skip
    place = batch["id"].index("a")
    for task in shardset.tasks:
        value = batch[task][place].numpy()
        inner = np.moveaxis(unpad(value, HW), 0, -1) if value.ndim == 3 else unpad(value, HW)
        np.testing.assert_array_equal(inner, truth[task])  # nothing is rounded, whatever the kind
        assert value.dtype == (np.float32 if task in ("depth", "normals", "disparity", "albedo") else np.int64)
        label = shardset.labels[task]
        assert label.valid(batch[task])[place].sum() == label.valid(truth[task]).sum()
        absent = batch["id"].index("c")
        assert not label.valid(batch[task])[absent].any()


def test_vectors_from_arrays_and_pictures_of_any_depth(kitchen):
    def change(values):
        albedo = {**values["tasks"]["albedo"], "invalid": None}
        values["tasks"]["albedo"] = albedo
        values["tasks"]["deep"] = {**albedo, "file": "deep/{id}.png", "range": [-1, 3]}
        values["tasks"]["many"] = {"kind": "vectors", "file": "many/{id}.npy", "channels": 5, "range": [0, 9]}
        values["tasks"]["one"] = {"kind": "vectors", "file": "one/{id}.npy", "channels": 1}
        values["tasks"]["way"] = {"kind": "vectors", "file": "way/{id}.npy", "channels": 2, "unit": True}

    for folder in ("deep", "many", "one", "way"):
        (kitchen / folder).mkdir()
    deep_HWC = np.zeros((*HW, 3), np.uint16)
    deep_HWC[0, 0] = [65535, 0, 13107]
    cv2.imwrite(str(kitchen / "deep/a.png"), deep_HWC[..., ::-1])
    many_HWC = np.ones((*HW, 5)) * [0, 1, 2, 3, 9]
    many_HWC[0, 0, 2] = np.nan
    np.save(kitchen / "many/a.npy", many_HWC)
    np.save(kitchen / "one/a.npy", np.full(HW, 0.25))
    np.save(kitchen / "way/a.npy", np.tile([[3.0, 4.0], [0, 0]], (6, 4, 1)))
    layout = open_layout(_change(kitchen, change))
    assert layout.definitions["way"] == {"kind": "vectors", "channels": 2, "unit": True, "metric": "mean"}
    stored, sample = layout.stored("a"), layout.read("a")
    assert stored["albedo"].dtype == np.uint8  # every pixel has a colour: eight bits will do
    np.testing.assert_allclose(sample["albedo"][0, :2], [[1, 0, 0.2], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(sample["deep"][0, :2], [[3, -1, -0.2], [-1, -1, -1]], rtol=1e-6)
    assert np.isnan(sample["many"][0, 0]).all() and sample["many"][0, 1].tolist() == [0, 1, 2, 3, 9]
    assert sample["one"].shape == (*HW, 1) and (sample["one"] == 0.25).all()
    np.testing.assert_allclose(sample["way"][0, :2], [[0.6, 0.8], [np.nan, np.nan]])
    np.save(kitchen / "many/a.npy", np.full((*HW, 5), 9.5))
    with pytest.raises(UserError, match=r"many/a.npy holds value 9.5, outside range \[0, 9\]"):
        layout.read("a")
    np.save(kitchen / "many/a.npy", np.zeros((17, 2)))  # keypoints
    with pytest.raises(UserError, match=r"many/a.npy has shape \(17, 2\), not \[H, W, 5\]: save one vector a pixel"):
        layout.read("a")
    save(kitchen / "albedo/a.png", np.zeros(HW))
    with pytest.raises(UserError, match=r"albedo/a.png is uint8 of 1 channels, not 3"):
        layout.read("a")


@pytest.mark.parametrize(("count", "ignore"), [(255, 255), (256, 65535), (1000, 65535)])
@pytest.mark.parametrize("task", ["semseg", "species"])
def test_more_classes_than_eight_bits_hold(kitchen, tmp_path, task, count, ignore):
    """Class 255 of 256 is a class like any other, from the file to the batch."""
    label_HW = np.tile(np.array([0, 254, 255, count - 1, count, 65535, 7, 8], np.uint16), (6, 1))
    Image.fromarray(label_HW).save(kitchen / "semseg/a.png")

    def change(values):
        section = {"file": "semseg/{id}.png", "classes": [f"c{n}" for n in range(count)], "ignore": "others"}
        values["tasks"] = {task: section if task == "semseg" else {"kind": "classes", **section}}

    layout = open_layout(_change(kitchen, change))
    truth = [value if value < count else ignore for value in label_HW[0].tolist()]
    sample = layout.read("a")
    assert sample[task].dtype == (np.uint8 if count == 255 else np.uint16) and sample[task][0].tolist() == truth
    shardset = build_shards(layout, "train", tmp_path / "train")
    assert verify_shards(tmp_path / "train") == [] and shardset.labels[task].ignore == ignore
    found = {
        s["id"]: s
        for s, _ in evaluation_samples(shardset, [task], transform=EvalTransform(HW, (0.5,) * 3, (0.5,) * 3), workers=1)
    }
    np.testing.assert_array_equal(found["a"][task], sample[task])
    transform = TrainTransform(
        HW, (0.5,) * 3, (0.5,) * 3, [task], scale_range=(1, 1), flip=False, labels=shardset.labels
    )
    batch = next(
        train_batches(shardset, [task], batch_size=3, micro_batch_size=3, rank=0, world=1, seed=0, transform=transform)
    )
    assert batch[task].dtype == torch.int64 and batch[task][batch["id"].index("a"), 0].tolist() == truth
    assert (batch[task][batch["id"].index("b")] == ignore).all()
    prediction_HW = np.minimum(sample[task], count - 1)
    assert prediction_HW.dtype == shardset.labels[task].dtype
    back_HW = Fit(HW, HW).back(prediction_HW, shardset.labels[task])
    np.testing.assert_array_equal(back_HW, prediction_HW)


def test_the_default_ignore_follows_the_number_of_classes(kitchen):
    def change(values):
        values["tasks"] = {"semseg": {"file": "semseg/{id}.png", "classes": [f"c{n}" for n in range(300)]}}

    layout = open_layout(_change(kitchen, change))
    Image.fromarray(np.full(HW, 65535, np.uint16)).save(kitchen / "semseg/a.png")
    assert (layout.read("a")["semseg"] == 65535).all()
    Image.fromarray(np.full(HW, 255, np.uint16)).save(kitchen / "semseg/a.png")
    assert (layout.read("a")["semseg"] == 255).all()
    Image.fromarray(np.full(HW, 300, np.uint16)).save(kitchen / "semseg/a.png")
    with pytest.raises(UserError, match="holds value 300, which is no class"):
        layout.read("a")
