"""The descriptions in configs/datasets, on hand-made miniatures of the public layouts."""

import numpy as np
import pytest
import yaml
from PIL import Image

from fgmoe_dist.data import codec
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.layouts.places import Places
from fgmoe_dist.data.shards import build_shards, verify_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.drawing.pictures import picture_classes
from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.train import main
from tests.archives import save
from tests.miniatures import CONFIGS, HW, WRITERS, description
from tests.runs import SETTINGS, Runs

SPLITS = {
    "camvid": {
        "train": [f"0001TP_00000{n}" for n in range(3)],
        "val": [f"0001TP_00100{n}" for n in range(2)],
        "test": ["0001TP_002000"],
    },
    "cityscapes": {
        "train": ["aachen_000000_000000", "aachen_000000_000001", "bochum_000000_000000"],
        "val": ["lindau_000000_000000"],
    },
    "nyuv2_13": {"train": [f"train_{n}" for n in range(11)], "val": ["val_0", "val_1"]},  # 10 comes after 9
    "taskonomy": {
        split: [f"{building}_point_{view}" for view in ("0_view_0", "0_view_1", "10_view_0")]
        for split, building in (("train", "allensville"), ("val", "darden"), ("test", "ihlen"))
    },
}


@pytest.fixture(params=WRITERS)
def public(request, tmp_path):
    root = WRITERS[request.param](tmp_path / request.param)
    return request.param, open_layout(description(request.param, root), root)


def _layout(name, tmp_path):
    root = WRITERS[name](tmp_path / name)
    return open_layout(description(name, root), root)


def test_every_split_has_its_images_in_their_order(public):
    name, layout = public
    assert {split: layout.ids(split) for split in layout.splits} == SPLITS[name]


def test_shards_of_every_split_hold_every_label(public, tmp_path):
    name, layout = public
    for split in layout.splits:
        shardset = build_shards(layout, split, tmp_path / split)
        assert (shardset.samples, shardset.tasks) == (len(SPLITS[name][split]), layout.tasks)
        assert verify_shards(tmp_path / split) == []
        for id_ in layout.ids(split):
            stored = layout.stored(id_)
            assert set(stored) == {"image", *codec.keys_of(layout.tasks, evaluation=True, labels=layout.labels)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cityscapes", "taskonomy"])
def test_a_dry_run_trains_a_step_and_evaluates(name, tmp_path, capsys):
    layout = _layout(name, tmp_path)
    for split in ("train", "val"):
        build_shards(layout, split, tmp_path / split)
    runs = Runs(tmp_path, tmp_path / "train", tmp_path / "val")
    settings = {"tasks": list(layout.tasks), "train": {**SETTINGS["train"], "loss_weights": {}}}
    values = {**yaml.safe_load(runs.config_file.read_text()), **settings}
    values["data"]["image_size"] = [16, 16]
    values["encoder"] = {"name": "vit_tiny_patch16_224", "weights": "none"}
    runs.config_file.write_text(yaml.safe_dump(values))
    main(["--config", str(runs.config_file), "--set", f"run.dir={tmp_path / 'run'}", "--dry-run"])
    assert "the configuration works" in capsys.readouterr().out


def test_camvid(tmp_path):
    sample = _layout("camvid", tmp_path).read("0001TP_000000")
    assert sample["semseg"][0, :8].tolist() == [0, 0, 0, 3, 3, 10, 255, 255]
    assert sample["edge"].any() and sample["boundary"].any()


def test_cityscapes(tmp_path):
    sample = _layout("cityscapes", tmp_path).read("bochum_000000_000000")
    assert sample["semseg"][0, :8].tolist() == [0, 1, 18, 255, 255, 255, 6, 13]
    np.testing.assert_array_equal(sample["disparity"][0, :4], [np.nan, 0, 1, 128])  # (x - 1) / 256
    labels = yaml.safe_load((CONFIGS / "cityscapes.yaml").read_text())["tasks"]["semseg"]
    named = [*labels["classes"].values(), *labels["ignore"]]
    assert sorted(named) == list(range(34)) and len(labels["classes"]) == 19  # every id of the data set, once


def test_nyuv2_13(tmp_path):
    layout = _layout("nyuv2_13", tmp_path)
    first, tenth, other = layout.read("train_0"), layout.read("train_10"), layout.read("val_0")
    assert first["image"].dtype == np.uint8 and first["image"][0, 0].tolist() == [0, 128, 255]
    assert tenth["image"][0, 0].tolist() == [100, 128, 255] and other["image"][0, 0].tolist() == [1, 128, 255]
    assert first["semseg"][0, :4].tolist() == [255, 0, 12, 5]
    assert first["depth"].shape == HW and first["depth"][0, :4].tolist() == [0, 1.5, 9.5, 2]
    np.testing.assert_allclose(first["normals"][0, :4], [[np.nan] * 3, [0, 0, 1], [0.6, 0, 0.8], [-1, 0, 0]], rtol=1e-6)


def test_taskonomy(tmp_path):
    sample = _layout("taskonomy", tmp_path).read("allensville_point_10_view_0")
    assert sample["semseg"][0, :4].tolist() == [255, 0, 1, 16]
    assert sample["depth"][0, :4].tolist() == [1, 2, 0, 0]
    np.testing.assert_allclose(sample["normals"][0, 0], [1, 0, 0], atol=0.01)
    assert np.isnan(sample["normals"][0, 1]).all() and not np.isnan(sample["normals"][0, 2:4]).any()
    np.testing.assert_allclose(sample["edge_occlusion"][0, :3], [0, 1, 0.2], rtol=1e-6)
    splits = yaml.safe_load((CONFIGS / "taskonomy.yaml").read_text())["splits"]
    assert [len(set(splits[split])) for split in ("train", "val", "test")] == [25, 5, 5]


def test_pictures_have_the_data_sets_own_colours(public, tmp_path):
    name, layout = public
    build_shards(layout, "train", tmp_path / "shards")
    shardset = ShardSet.open(tmp_path / "shards")
    colours = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["tasks"]["semseg"]["colours"]
    assert shardset.definitions["semseg"] == {"kind": "classes", "colours": colours}
    semseg = create_tasks(["semseg"], shardset)[0]
    label_HW = layout.read(layout.ids("train")[0])["semseg"]
    column = semseg.column([label_HW], [label_HW])
    seen_HW = label_HW != 255
    np.testing.assert_array_equal(column.truths[0][seen_HW], np.array(colours)[label_HW[seen_HW]])
    assert dict((word, colour) for colour, word in column.legend.swatches) == {
        semseg.class_names[index]: tuple(colours[index]) for index in np.unique(label_HW[seen_HW])
    }
    ours_HWC = picture_classes(label_HW, semseg.class_names)
    assert (ours_HWC[seen_HW] != column.truths[0][seen_HW]).any()


def test_without_colours_nothing_is_told_of_a_known_task(tmp_path):
    root = WRITERS["camvid"](tmp_path / "camvid")
    values = yaml.safe_load((CONFIGS / "camvid.yaml").read_text())
    del values["tasks"]["semseg"]["colours"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(values))
    layout = open_layout(tmp_path / "plain.yaml", root)
    assert layout.definitions == {} and "colours" not in layout.meaning()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("camvid", lambda v: v["tasks"]["semseg"]["colours"].pop(), "colours: there are 10 for 11 classes"),
        ("camvid", lambda v: v["tasks"]["semseg"]["colours"].__setitem__(0, [0, 0, 256]), r"colours.0.2=256: input"),
        ("camvid", lambda v: v["splits"].update(train="trian"), "splits.train: below .* is no such folder: trian"),
        ("camvid", lambda v: v["splits"].update(train="trainannot"), "no image of image.file .* lies there"),
        ("camvid", lambda v: v["splits"].update(val=["val", "val"]), "splits.val='val' has 0001TP_001000 twice"),
        ("camvid", lambda v: v["image"].update(file="*/{id}.png"), "0001TP_000000.png are both .* of image 0001TP"),
        ("cityscapes", lambda v: v["tasks"]["semseg"].update(file="gtFine/*/*/{id}_*.png"), "are both gtFine/.*/{id}_"),
        ("cityscapes", lambda v: v["splits"].update(val="leftImg8bit/*/lindua/*"), "no image of image.file"),
        ("nyuv2_13", lambda v: v.update(id="{part}_{nmber}"), "image.file='{part}/image/{number}.npy': write {nmber}"),
        ("nyuv2_13", lambda v: v.update(id="same"), "id='same': name the fields that it is made of"),
        ("nyuv2_13", lambda v: v.pop("id"), "image.file=.*: write {id} where"),
        ("nyuv2_13", lambda v: v["image"].update(range=[1, 0]), "image: range: give the value of black"),
    ],
)
def test_mistakes_in_patterns_are_named(name, change, message, tmp_path):
    root = WRITERS[name](tmp_path / name)
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    change(values)
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=message) as caught:
        open_layout(tmp_path / "changed.yaml", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((*HW, 3), 200.0), r"holds value 200, outside image.range \[0, 1\]"),
        (np.full((*HW, 3), np.nan), "holds value nan, outside image.range"),
        (np.zeros((3, *HW)), r"has shape \(3, 12, 16\), not \[H, W, 3\]: say image.order"),
        (np.zeros(HW), r"has shape \(12, 16\), not \[H, W, 3\]"),
    ],
)
def test_arrays_that_are_no_images_are_named(image, message, tmp_path):
    layout = _layout("nyuv2_13", tmp_path)
    np.save(layout.root / "train/image/3.npy", image)
    with pytest.raises(UserError, match=f"train/image/3.npy {message}"):
        layout.read("train_3")


def test_arrays_with_the_channels_first_mean_the_same(tmp_path):
    root = WRITERS["nyuv2_13"](tmp_path / "nyuv2_13")
    before = open_layout(CONFIGS / "nyuv2_13.yaml", root).read("val_1")
    for part in ("image", "normal", "depth"):
        path = root / "val" / part / "1.npy"
        np.save(path, np.moveaxis(np.load(path), -1, 0))
    values = yaml.safe_load((CONFIGS / "nyuv2_13.yaml").read_text())
    values["image"]["order"] = values["tasks"]["normals"]["order"] = "chw"
    (tmp_path / "chw.yaml").write_text(yaml.safe_dump(values))
    layout = open_layout(tmp_path / "chw.yaml", root)
    for key, value in layout.read("val_1").items():
        np.testing.assert_array_equal(value, before[key])
    with pytest.raises(UserError, match="train/image/0.npy has shape .* not \\[3, H, W\\]"):
        layout.read("train_0")
    np.save(root / "val/image/1.npy", np.full((3, *HW), 7, np.uint8))
    values["image"].pop("range")
    (tmp_path / "bytes.yaml").write_text(yaml.safe_dump(values))
    assert (open_layout(tmp_path / "bytes.yaml", root).read("val_1")["image"] == 7).all()


@pytest.mark.parametrize(
    ("value", "told"), [(0.5, "0.5"), (13.0, "13"), (-2.0, "-2"), (np.nan, "nan"), (1e300, "1e+300")]
)
def test_numbers_that_are_no_class_are_named(value, told, tmp_path):
    layout = _layout("nyuv2_13", tmp_path)
    label_HW = np.zeros(HW)
    label_HW[3, 3] = value
    np.save(layout.root / "train/label/0.npy", label_HW)
    with pytest.raises(UserError, match=rf"train/label/0.npy holds value {told.replace('+', '.')}"):
        layout.read("train_0")


def test_a_star_never_leaves_its_folder_and_hidden_files_are_none(tmp_path):
    for name in ("a/1.png", "a/b/2.png", "a/._3.png", ".c/4.png", "a/5.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert Places(tmp_path).listed("*/{id}.png") == {"1": "a/1.png"}
    assert Places(tmp_path).below(["*/{id}.png", "*/*/{id}.png"], ".") == ["1", "2"]
    assert Places(tmp_path).below(["*/{id}.png", "*/*/{id}.png"], "a/*/*") == ["2"]
    assert Places(tmp_path, "{x}{x}").listed("{x}/{x}.png") == {}


def test_names_that_no_shard_holds_are_refused_where_a_folder_gives_the_ids(tmp_path):
    root = WRITERS["camvid"](tmp_path / "camvid")
    save(root / "train/my photo.png", np.zeros((*HW, 3)))
    with pytest.raises(UserError, match="splits.train='train' has 'my photo': an id is letters"):
        open_layout(CONFIGS / "camvid.yaml", root)


def test_sixteen_bits_survive_from_the_file(tmp_path):
    root = WRITERS["cityscapes"](tmp_path / "cityscapes")
    path = next(root.glob("disparity/val/*/*.png"))
    Image.fromarray(np.full(HW, 65535, np.uint16)).save(path)
    sample = open_layout(CONFIGS / "cityscapes.yaml", root).read("lindau_000000_000000")
    assert (sample["disparity"] == np.float32(65534 / 256)).all()
