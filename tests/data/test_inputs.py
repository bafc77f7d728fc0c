"""A described data set of odd files, through the builder: the right label, or one line that names the file."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from fgmoe_dist import cli
from fgmoe_dist.data import shard_writer
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards
from fgmoe_dist.data.shardset import ShardSet, decode_sample, read_shard
from fgmoe_dist.data.sizes import check_fits, largest_size
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.regions import region_boundary
from tests.archives import save, write_nyud, write_pascal
from tests.pictures import GREY, PALETTE, write_png

HW = (6, 8)
HALF_HW = np.tile([0, 0, 0, 1, 1, 1, 1, 0], (6, 1))


def described(folder, tasks, images=2, **more):
    """A data set of plain images `i0`, `i1`, ... whose label files the test writes.

    A split of one further image has a file for every task, so that no pattern is a mistake.
    """
    ids = [f"i{n}" for n in range(images)]
    values = {
        "name": "odd", "image": {"file": "images/{id}.png"}, "splits": {"train": "train.txt", "other": "other.txt"},
        "tasks": {task: {"file": f"{task}/{{id}}.png", **options} for task, options in tasks.items()}, **more,
    }  # fmt: skip
    for name in ("images", *tasks):
        (folder / name).mkdir(exist_ok=True)
    for n, id_ in enumerate(ids):
        save(folder / f"images/{id_}.png", np.random.default_rng(n).integers(0, 256, (*HW, 3)))
    for task in values["tasks"].values():
        (folder / task["file"].replace("{id}", "zz")).touch()
    (folder / "train.txt").write_text("\n".join(ids))
    (folder / "other.txt").write_text("zz")
    (folder / "odd.yaml").write_text(yaml.safe_dump(values))
    return open_layout(folder / "odd.yaml")


# ---- pictures by their meaning ----


def test_one_bit_labels_are_classes_and_masks(tmp_path):
    layout = described(tmp_path, {"semseg": {"classes": ["bg", "fg"]}, "sal": {}, "edge": {}})
    for task in layout.tasks:
        for id_ in ("i0", "i1"):
            write_png(tmp_path / task / f"{id_}.png", HALF_HW, 1)
    sample = layout.read("i0")
    for task in layout.tasks:
        np.testing.assert_array_equal(sample[task], HALF_HW)


def test_a_mask_of_labels_says_so(tmp_path):
    options = {"encoding": "labels"}
    layout = described(tmp_path, {"sal": options, "edge": options, "haze": {"kind": "binary", **options}})
    label_HW = HALF_HW.copy()
    label_HW[0] = 255
    for task in layout.tasks:
        write_png(tmp_path / task / "i0.png", label_HW)
        write_png(tmp_path / task / "i1.png", HALF_HW, 8, PALETTE, [(0, 0, 0), (128, 0, 0)])
    for task in layout.tasks:
        np.testing.assert_array_equal(layout.read("i0")[task], label_HW)
        np.testing.assert_array_equal(layout.read("i1")[task], HALF_HW)
    layout = described(tmp_path, {"sal": {}, "edge": {}})
    for id_ in ("i0", "i1"):
        with pytest.raises(UserError, match=rf"(sal|edge)/{id_}.png .*encoding: labels"):
            layout.read(id_)


def test_regions_may_be_of_any_width(tmp_path):
    layout = described(tmp_path, {"edge": {"encoding": "regions", "file": "edge/{id}.npy"}})
    region_HW = np.where(HALF_HW, 10**9, -3)
    np.save(tmp_path / "edge/i0.npy", region_HW)
    sample = layout.read("i0")
    assert sample["edge"].any() and set(np.nonzero(region_boundary(region_HW))[1]) >= set(
        np.nonzero(sample["boundary"])[1]
    )


def test_class_numbers_in_arrays(tmp_path):
    tasks = {"semseg": {"file": "semseg/{id}.npy", "classes": ["a", "b"], "ignore": "others"}}
    layout = described(tmp_path, tasks)
    np.save(tmp_path / "semseg/i0.npy", np.where(HALF_HW, 1.0, -1.0))
    np.testing.assert_array_equal(layout.read("i0")["semseg"], np.where(HALF_HW, 1, 255))
    np.save(tmp_path / "semseg/i0.npy", np.where(HALF_HW, 70000, 0))
    np.testing.assert_array_equal(layout.read("i0")["semseg"], np.where(HALF_HW, 255, 0))
    tasks["semseg"]["ignore"] = [255]
    with pytest.raises(UserError, match="semseg/i0.npy holds value 70000, which is no class"):
        described(tmp_path, tasks).read("i0")


# ---- orientation ----


def turned(path, rgb_HWC, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb_HWC).save(path, exif=exif)


@pytest.mark.parametrize("on", ["shown", "stored"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_size_tells_which_pixels_labels_lie_on(tmp_path, orientation, on):
    """The label marks the red pixels, wherever they are."""
    layout = described(tmp_path, {"sal": {}})
    rgb_HWC = np.zeros((*HW, 3), np.uint8)
    rgb_HWC[1:3, 2:7, 0] = 255
    turned(tmp_path / "images/i0.png", rgb_HWC, orientation)
    shown_HWC = layout.image("i0")
    assert shown_HWC.shape == (*HW[::-1], 3)
    save(tmp_path / "sal/i0.png", (shown_HWC if on == "shown" else rgb_HWC)[..., 0])
    sample = layout.read("i0")
    np.testing.assert_array_equal(sample["image"], shown_HWC)
    np.testing.assert_array_equal(sample["sal"], shown_HWC[..., 0] // 255)
    build_shards(layout, "train", tmp_path / "out", ids=["i0"])
    shard = ShardSet.open(tmp_path / "out").shards[0]
    stored = decode_sample(shard, "i0", read_shard(shard)["i0"], ("sal",))
    np.testing.assert_array_equal(stored["image"], shown_HWC)  # the same that `fgmoe predict` reads


def test_where_the_size_does_not_tell_the_description_must(tmp_path):
    rgb_HWC = np.zeros((*HW, 3), np.uint8)
    rgb_HWC[1:3, 2:7, 0] = 255
    for orientation in (2, 3, 4):
        layout = described(tmp_path, {"sal": {}})
        turned(tmp_path / "images/i0.png", rgb_HWC, orientation)
        assert layout.read("i0").keys() == {"id", "image"}  # without a label nothing can be wrong
        save(tmp_path / "sal/i0.png", rgb_HWC[..., 0])
        with pytest.raises(UserError, match=r"images/i0.png is turned by its EXIF tag.*labels_on: shown"):
            layout.read("i0")
        for on in ("shown", "stored"):
            layout = described(tmp_path, {"sal": {}}, image={"file": "images/{id}.png", "labels_on": on})
            turned(tmp_path / "images/i0.png", rgb_HWC, orientation)
            sample = layout.read("i0")
            truth_HW = sample["image"][..., 0] if on == "stored" else rgb_HWC[..., 0]
            np.testing.assert_array_equal(sample["sal"], truth_HW // 255)
        (tmp_path / "sal/i0.png").unlink()


def test_directions_are_not_turned(tmp_path):
    layout = described(tmp_path, {"normals": {}})
    turned(tmp_path / "images/i0.png", np.zeros((*HW, 3), np.uint8), 6)
    save(tmp_path / "normals/i0.png", np.full((*HW, 3), (128, 128, 255)))
    with pytest.raises(UserError, match="its normals are not, and directions would point elsewhere"):
        layout.read("i0")
    save(tmp_path / "normals/i0.png", np.full((*HW[::-1], 3), (128, 128, 255)))
    assert layout.read("i0")["normals"].shape == (8, 6, 3)


def test_an_archives_images_stay_as_they_are_stored(tmp_path):
    """Its labels were drawn on them by programs that know no EXIF."""
    layout = open_layout("pascal", write_pascal(tmp_path / "PASCALContext"))
    path = layout.image_path("2008_000001")
    before_HWC = layout.image("2008_000001")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(path)
    picture.save(path, exif=exif, qtables=picture.quantization, subsampling=0)
    assert layout.image("2008_000001").shape == before_HWC.shape
    assert layout.read("2008_000001")["semseg"].shape == before_HWC.shape[:2]


# ---- sources are known by their contents ----


def kept(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


@pytest.mark.parametrize(("write", "dataset", "id_", "file"), [
    (write_nyud, "nyud", "0003", "depth/0003.npy"), (write_nyud, "nyud", "0002", "edge/0002.png"),
    (write_pascal, "pascal", "2008_000001", "human_parts/2008_000001.mat"),
    (write_pascal, "pascal", "2008_000002", "semseg/VOC12/2008_000002.png"),
])  # fmt: skip
def test_a_value_changed_in_place_is_noticed(tmp_path, write, dataset, id_, file):
    layout = open_layout(dataset, write(tmp_path / "root"))
    build_shards(layout, "train", tmp_path / "out")
    path = layout.root / file
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # neither its size nor its time tells
    with pytest.raises(UserError, match=f"already holds other shards, made before the files of image {id_} changed"):
        build_shards(layout, "train", tmp_path / "out")
    content[-1] ^= 1
    path.write_bytes(content)
    build_shards(layout, "train", tmp_path / "out")


def test_an_archive_that_moved_is_the_same(tmp_path):
    root = write_nyud(tmp_path / "root")
    build_shards(open_layout("nyud", root), "train", tmp_path / "out")
    root.rename(tmp_path / "elsewhere")
    before = kept(tmp_path / "out")
    build_shards(open_layout("nyud", tmp_path / "elsewhere"), "train", tmp_path / "out")
    assert kept(tmp_path / "out") == before


def test_a_set_built_before_contents_counted_is_known_by_sizes(tmp_path):
    layout = open_layout("nyud", write_nyud(tmp_path / "root"))
    build_shards(layout, "train", tmp_path / "out")
    index = json.loads((tmp_path / "out/index.json").read_text())
    del index["source"]["contents"], index["survey"], index["largest"]
    (tmp_path / "out/index.json").write_text(json.dumps(index))
    assert build_shards(layout, "train", tmp_path / "out").survey == {}


@pytest.fixture
def broken_off(tmp_path, monkeypatch):
    """An archive, and a build of it that stopped after three of five shards."""
    layout = open_layout("nyud", write_nyud(tmp_path / "root"))
    write, calls = shard_writer.write_atomically, []

    def stop(path, data):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(shard_writer, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        build_shards(layout, "train", tmp_path / "out", samples_per_shard=1)
    monkeypatch.setattr(shard_writer, "write_atomically", write)
    assert len(kept(tmp_path / "out")) == 3
    return layout


def test_an_unfinished_build_keeps_the_tars_that_are_still_good(broken_off, tmp_path):
    """A repaired file of another size, and then an id taken off the list: the cures that messages name."""
    before = kept(tmp_path / "out")
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    first = next(iter(plan["contents"]))
    np.save(broken_off.root / f"depth/{first}.npy", np.ones((12, 16), np.float32))
    shardset = build_shards(broken_off, "train", tmp_path / "out", samples_per_shard=1)
    after = kept(tmp_path / "out")
    assert [name for name in before if before[name] != after[name]] == ["nyud-train-000000.tar"]
    shard = shardset.find(first)
    assert (decode_sample(shard, first, read_shard(shard)[first], ("depth",))["depth"] == 1).all()
    assert not (tmp_path / "out/plan.json").exists()


def test_an_id_off_the_list_leaves_no_tar_of_others_behind(broken_off, tmp_path):
    ids = list(json.loads((tmp_path / "out/plan.json").read_text())["contents"])
    left = [id_ for id_ in broken_off.ids("train") if id_ != ids[1]]
    (broken_off.root / "gt_sets/train.txt").write_text("\n".join(left))
    before = kept(tmp_path / "out")
    shardset = build_shards(broken_off, "train", tmp_path / "out", samples_per_shard=1)
    assert [shard.ids for shard in shardset.shards] == [(id_,) for id_ in ids if id_ != ids[1]]
    assert len(kept(tmp_path / "out")) == 4
    assert kept(tmp_path / "out")["nyud-train-000000.tar"] == before["nyud-train-000000.tar"]


def test_another_split_in_an_unfinished_build_is_refused(broken_off, tmp_path):
    with pytest.raises(UserError, match="unfinished build of something else"):
        build_shards(broken_off, "val", tmp_path / "out")


@pytest.mark.parametrize("contents", [[], "a", 3, None])
def test_an_edited_plan_is_no_plan_of_ours(broken_off, tmp_path, contents):
    path = tmp_path / "out/plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "contents": contents}))
    with pytest.raises(UserError, match="unfinished build of something else"):
        build_shards(broken_off, "train", tmp_path / "out", samples_per_shard=1)


# ---- what labels a split has ----


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        ("depth", {"images": 3, "pixels": 1, "low": 1, "high": 3, "mean": 2}),
        ("semseg", {"images": 3, "pixels": 1, "shares": [1, 0]}),
        ("semseg", {"images": 3, "pixels": 1}),
        ("depths", {"images": 3, "pixels": 0}),
    ],
)
def test_an_edited_survey_is_named(tmp_path, task, figures):
    build_shards(open_layout("nyud", write_nyud(tmp_path / "root")), "train", tmp_path / "out")
    index = json.loads((tmp_path / "out/index.json").read_text())
    index["survey"][task] = figures
    (tmp_path / "out/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"survey.{task}: .*rebuild the set"):
        ShardSet.open(tmp_path / "out")


def test_the_index_and_the_lines_say_what_labels_there_are(tmp_path, capsys):
    root = write_nyud(tmp_path / "root", train=3)
    for n, id_ in enumerate(("0001", "0002", "0003")):
        save(root / f"segmentation/{id_}.png", np.where(np.arange(16) < 4, 0, 1 + n) + np.zeros((12, 16)))
        np.save(root / f"depth/{id_}.npy", np.full((12, 16), 1.0 + n))
        save(root / f"edge/{id_}.png", np.where(np.arange(16) == 4, 255, 0) + np.zeros((12, 16)))
    words = [
        "shards",
        "build",
        "--dataset",
        "nyud",
        "--root",
        str(root),
        "--split",
        "train",
        "--out",
        str(tmp_path / "o"),
    ]
    cli.main(words)
    survey = json.loads((tmp_path / "o/index.json").read_text())["survey"]
    assert survey["semseg"]["images"] == 3 and survey["semseg"]["pixels"] == 0.75
    assert survey["semseg"]["shares"][:4] == [0.333333, 0.333333, 0.333333, 0]
    assert survey["depth"] == {"images": 3, "pixels": 1, "low": 1, "high": 3, "mean": 2, "median": 2}
    assert survey["edge"]["shares"] == [0.9375, 0.0625]
    out = capsys.readouterr().out
    assert "semseg: 3 of 3 images, 75 % of their pixels: wall 33.3 %, floor 33.3 %, cabinet 33.3 %; none of 37" in out
    assert "depth: 3 of 3 images, 100 % of their pixels, 1 to 3, mean 2, median 2" in out
    assert "edge: 3 of 3 images, 100 % of their pixels, 6.25 % of these foreground" in out
    cli.main(words)
    assert capsys.readouterr().out == out  # the finished set tells it again


def test_a_split_in_which_no_image_has_a_label_is_refused_before_the_work(tmp_path):
    layout = described(tmp_path, {"sal": {}})
    save(tmp_path / "images/zz.png", np.zeros((*HW, 3)))
    save(tmp_path / "sal/zz.png", HALF_HW * 255)
    with pytest.raises(
        UserError, match=r"tasks.sal.file sal/\{id\}.png: none of the 2 images of train has such a file"
    ):
        build_shards(layout, "train", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build_shards(layout, "other", tmp_path / "out")


@pytest.mark.parametrize(("task", "options", "write", "message"), [
    ("semseg", {"classes": ["a", "b"]}, lambda p: save(p, np.full(HW, 255)), "not one pixel of any image has a label"),
    ("semseg", {"classes": ["a", "b"]}, lambda p: save(p, 255 * HALF_HW), r"is b, 50 % are a .*\{a: 0, b: 255\}"),
    ("sal", {}, lambda p: save(p, np.zeros(HW)), "not one pixel of any image is foreground"),
    ("edge", {}, lambda p: save(p, np.zeros(HW)), "not one pixel of any image is foreground"),
    ("depth", {}, lambda p: write_png(p, np.full(HW, 3759), 16), "beyond 3759 m, mean 3759 m: are the files in millim"),
    ("depth", {"unit": 1e-6}, lambda p: write_png(p, np.full(HW, 3759), 16), "no depth is beyond 0.003759 m"),
    ("depth", {}, lambda p: save(p, np.zeros(HW)), "not one pixel of any image has a label"),
    ("heat", {"kind": "scalar", "invalid": [7]}, lambda p: save(p, np.full(HW, 7)), "not one pixel of any image has"),
])  # fmt: skip
def test_labels_that_cannot_be_meant_are_refused_over_the_split(tmp_path, task, options, write, message):
    layout = described(tmp_path, {task: options})
    for id_ in ("i0", "i1"):
        write(tmp_path / task / f"{id_}.png")
    with pytest.raises(UserError, match=f"{task} of the train split: .*{message}"):
        build_shards(layout, "train", tmp_path / "out")
    assert not (tmp_path / "out/index.json").exists()
    build_shards(layout, "train", tmp_path / "some", ids=["i0"])  # of some images it is told, not refused


def test_a_corrected_description_goes_on_in_the_same_folder(tmp_path):
    layout = described(tmp_path, {"depth": {}})
    for id_ in ("i0", "i1"):
        write_png(tmp_path / f"depth/{id_}.png", np.full(HW, 3000), 16, GREY)
    with pytest.raises(UserError, match=r"unit: 0\.001"):
        build_shards(layout, "train", tmp_path / "out")
    layout = described(tmp_path, {"depth": {"unit": 0.001}})
    assert build_shards(layout, "train", tmp_path / "out").survey["depth"]["mean"] == 3


# ---- ids and sizes ----


def test_an_id_that_no_tar_can_hold_is_refused_before_the_work(tmp_path):
    layout = described(tmp_path, {"sal": {}, "edge": {}})
    for length, fits in ((87, True), (88, False), (200, False)):
        id_ = "x" * length
        (tmp_path / "train.txt").write_text(id_)
        save(tmp_path / f"images/{id_}.png", np.zeros((*HW, 3)))
        save(tmp_path / f"sal/{id_}.png", HALF_HW * 255)
        save(tmp_path / f"edge/{id_}.png", HALF_HW * 255)
        if fits:
            assert build_shards(layout, "train", tmp_path / f"o{length}").shards[0].ids == (id_,)
            continue
        with pytest.raises(UserError, match=f"has {length} characters, of which a shard holds 87: shorten"):
            build_shards(layout, "train", tmp_path / f"o{length}")


def test_the_largest_image_is_known_without_reading_any(tmp_path):
    layout = described(tmp_path, {"sal": {}}, images=3)
    for id_, hw in (("i0", (6, 40)), ("i1", (30, 5)), ("i2", (7, 7))):
        Image.fromarray(np.zeros((*hw, 3), np.uint8)).save(tmp_path / f"images/{id_}.png")
        save(tmp_path / f"sal/{id_}.png", np.where(np.arange(hw[1]) < 2, 255, 0) + np.zeros(hw))
    shardset = build_shards(layout, "train", tmp_path / "out", samples_per_shard=2)
    assert shardset.largest == largest_size(shardset) == (30, 40)
    check_fits(shardset, (30, 40))
    index = json.loads((tmp_path / "out/index.json").read_text())
    del index["survey"], index["largest"]  # as an older builder left it
    (tmp_path / "out/index.json").write_text(json.dumps(index))
    old = ShardSet.open(tmp_path / "out")
    assert old.largest is None and largest_size(old) == (30, 40)
    for shards in (shardset, old, ShardSet.open([tmp_path / "out", tmp_path / "out"])):
        with pytest.raises(
            UserError, match="images of up to 30x40, larger than data.image_size 30x39: evaluation never"
        ):
            check_fits(shards, (30, 39))
    piped = ShardSet.open(f"pipe:cat {tmp_path}/out/odd-train-{{000000..000001}}.tar")
    assert largest_size(piped)[0] in (7, 30)  # of what lies elsewhere, the first shard


def test_jpegs_tell_their_size_too(tmp_path):
    shardset = build_shards(open_layout("pascal", write_pascal(tmp_path / "root")), "train", tmp_path / "out")
    assert shardset.largest == (12, 16)
