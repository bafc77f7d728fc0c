"""What `fgmoe shards check` says of data sets that are whole, that lack something, or that are others."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.cli import main
from fgmoe_dist.data.check import check_data_set
from fgmoe_dist.data.layouts.nyud import NYUDv2
from fgmoe_dist.data.layouts.pascal import PASCALContext
from fgmoe_dist.errors import UserError
from fgmoe_dist.verbs import shards
from tests.archives import SIZE_HW, save, write_nyud, write_pascal
from tests.miniatures import CONFIGS, WRITERS


@pytest.fixture
def small(monkeypatch):
    """The published archives are as small as those of the tests."""
    monkeypatch.setattr(NYUDv2, "published", {"train": 5, "val": 3})
    monkeypatch.setattr(PASCALContext, "published", {"train": 2, "val": 1})
    for layout in (NYUDv2, PASCALContext):
        monkeypatch.setattr(layout, "has_size", lambda self, size_hw: size_hw == SIZE_HW)


@pytest.fixture
def nyud(tmp_path, small):
    return write_nyud(tmp_path / "NYUDv2")


@pytest.fixture
def pascal(tmp_path, small):
    return write_pascal(tmp_path / "PASCALContext")


def _lists(root, train=None, val=None):
    for split, text in (("train", train), ("val", val)):
        if text is not None:
            (root / "gt_sets" / f"{split}.txt").write_text(text)


def test_whole_archives_are_whole(nyud, pascal):
    for dataset, root, counts in (("nyud", nyud, {"train": 5, "val": 3}), ("pascal", pascal, {"train": 2, "val": 1})):
        report = check_data_set(dataset, root)
        assert (report.faults, report.notes) == ([], [])
        assert {split: set(found.values()) for split, found in report.splits.items()} == {
            split: {count} for split, count in counts.items()
        }
    files = check_data_set("nyud", nyud).files
    assert files["depth"]["form"] == "npy float64 [12, 16]" and 0.5 <= files["depth"]["lowest"] < 0.6
    assert files["image"]["form"] == "PNG RGB 12x16" and files["edge"]["highest"] == 1
    assert (files["semseg"]["lowest"], files["semseg"]["highest"]) == (0, 39)  # classes, as a build would give them


@pytest.mark.parametrize("name", WRITERS)
def test_public_sets_are_whole(name, tmp_path):
    if name == "taskonomy":
        report = check_data_set(CONFIGS / "taskonomy.yaml", WRITERS[name](tmp_path / name))
        assert [fault.count("rgb/") for fault in report.faults] == [24, 4, 4]  # every building that is not there
        return
    report = check_data_set(CONFIGS / f"{name}.yaml", WRITERS[name](tmp_path / name))
    assert report.faults == [] and report.opened == sum(min(found["listed"], 8) for found in report.splits.values())
    assert report.notes == []


def test_the_published_counts_and_sizes_are_known(tmp_path):
    assert (NYUDv2.published, PASCALContext.published) == ({"train": 795, "val": 654}, {"train": 4998, "val": 5105})
    told = "\n".join(check_data_set("nyud", write_nyud(tmp_path / "NYUDv2")).faults)
    assert "train.txt has 5 ids: the archive as published has 795 for train" in told
    assert "8 ids (0001, 0002, 0003, ...) of 12x16: the archive as published has 425x560" in told
    told = "\n".join(check_data_set("pascal", write_pascal(tmp_path / "PASCALContext")).faults)
    assert "val.txt has 1 ids: the archive as published has 5105 for val" in told and "longer side" in told


@pytest.mark.parametrize(("where", "way"), [("..", "high"), ("images", "low"), ("../..", None)])
def test_a_neighbouring_folder_is_told_and_looked_at(small, tmp_path, where, way):
    nyud = write_nyud(tmp_path / "of/mine/NYUDv2")  # two folders above lies nothing of other tests
    (nyud / "edge/0001.png").unlink()
    report = check_data_set("nyud", (nyud / where).resolve())
    if way is None:
        assert "is no NYUDv2 archive: it lacks gt_sets" in report.faults[0]
        return
    assert f"is one folder too {way}: give {nyud}" in report.faults[0]
    assert report.faults[1:] == [f"train: 1 id (0001) of 5 without edge in {nyud / 'edge'}"]


def test_a_folder_under_another_name_is_found_and_one_still_packed_is_told(nyud, tmp_path):
    nyud.rename(tmp_path / "data")
    assert f"give {tmp_path / 'data'}" in check_data_set("nyud", tmp_path).faults[0]
    (tmp_path / "new").mkdir()
    (tmp_path / "new/NYUDv2.tar.gz").touch()
    assert f"unpack {tmp_path / 'new/NYUDv2.tar.gz'} first" in check_data_set("nyud", tmp_path / "new").faults[0]
    assert "is no folder" in check_data_set("nyud", tmp_path / "nowhere").faults[0]


def test_the_other_archive_of_nyud_is_told(nyud):
    """As public code reads NYUD_MT: .jpg images, .png classes, all else .npy, 480x640."""
    for path in nyud.glob("images/*.png"):
        Image.new("RGB", (640, 480)).save(path.with_suffix(".jpg"))
        path.unlink()
    for path in [*nyud.glob("edge/*.png"), *nyud.glob("normals/*.png")]:
        np.save(path.with_suffix(".npy"), np.zeros((480, 640, 3)[: 2 if path.parent.name == "edge" else 3]))
        path.unlink()
    report = check_data_set("nyud", nyud)
    assert "is the NYUD_MT archive" in report.faults[0]
    lacks = ("train: 5 ids (0001, 0002, 0003, ...) of 5", "val: 3 ids (0006, 0007, 0008) of 3")
    assert [fault.startswith(lacks) for fault in report.faults[1:]] == [True] * 6  # images, normals, edges
    assert report.splits["train"] == {"listed": 5, "image": 0, "semseg": 5, "depth": 5, "normals": 0, "edge": 0}


def test_all_that_is_wrong_with_lists_is_told_at_once(nyud):
    _lists(nyud, train="0001 0001 0002.png 0009 0003 0006", val="")
    report = check_data_set("nyud", nyud)
    lists = f"the id list {nyud}/gt_sets"
    assert report.faults == [
        f"{lists}/train.txt has 0001 twice: remove one",
        f"{lists}/train.txt has '0002.png': an id is letters, digits, _ and - (no extension)",
        f"{lists}/train.txt has 6 ids: the archive as published has 5 for train",
        f"{lists}/val.txt is empty: put one image id on each line",
        f"train: 1 id (0009) of 4 without image in {nyud / 'images'}",
        *(f"train: 1 id (0009) of 4 without {key} in {nyud / folder}" for key, folder in (
            ("semseg", "segmentation"), ("depth", "depth"), ("normals", "normals"), ("edge", "edge"),
        )),
    ]  # fmt: skip
    assert report.notes == [f"5 images are in no split, {nyud / 'images/0002.png'} for one"]
    _lists(nyud, train="0001 0002 0003 0004 0005", val="0005 0006 0007")
    assert check_data_set("nyud", nyud).faults == [
        "1 id (0005) in train and in val as well: take them off one",
    ]


def test_what_opened_files_hold_is_told(nyud):
    for path in nyud.glob("depth/*.npy"):
        np.save(path, np.load(path) * 1000)
    for path in nyud.glob("edge/*.png"):
        save(path, np.ones(SIZE_HW))  # 0 and 1 in place of 0 and 255
    for path in nyud.glob("normals/*.png"):
        save(path, np.zeros((*SIZE_HW, 3)))
    told = check_data_set("nyud", nyud).faults
    assert [fault.split(":")[0] for fault in told] == ["depth", "normals", "edge"]
    assert (
        "millimetres" in told[0]
        and "8 images that were opened not one pixel" in told[1]
        and "values 0 and 1" in told[2]
    )
    (nyud / "segmentation/0001.png").write_bytes(b"")
    save(nyud / "segmentation/0008.png", np.full(SIZE_HW, 41))
    save(nyud / "segmentation/0005.png", np.zeros((4, 4)))
    told = check_data_set("nyud", nyud).faults
    assert [f"{n:04d}" in told[k] for k, n in enumerate((1, 5, 8))] == [True] * 3


def test_pascal_without_its_distilled_labels_is_told_once(pascal):
    for folder in ("normals_distill", "sal_distill"):
        for path in (pascal / folder).iterdir():
            path.unlink()
        (pascal / folder).rmdir()
    faults = check_data_set("pascal", pascal).faults
    assert "it lacks normals_distill, sal_distill" in faults[0]
    assert not any(" without " in fault for fault in faults)


def test_described_sets_may_lack_labels_but_no_split_may_lack_one_wholly(tmp_path):
    root = WRITERS["camvid"](tmp_path / "camvid")
    (root / "trainannot/0001TP_000001.png").unlink()
    report = check_data_set(CONFIGS / "camvid.yaml", root)
    assert report.faults == [] and report.notes[0] == "train: 1 of 3 images have no label for semseg"
    for path in (root / "valannot").iterdir():
        path.unlink()
    assert [fault for fault in check_data_set(CONFIGS / "camvid.yaml", root).faults if "val: no image has" in fault]


def test_the_command_line(nyud, tmp_path, capsys):
    main(["shards", "check", "--dataset", "nyud", "--root", str(nyud), "--json", str(tmp_path / "found.json")])
    assert "it is whole" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["whole"] is True
    (nyud / "images/0001.png").unlink()
    args = argparse.Namespace(action="check", dataset="nyud", root=nyud, json=tmp_path / "found.json")
    with pytest.raises(UserError, match="1 faults, listed above"):  # `main` makes exit code 2 of it
        shards.run(args)
    assert "fault: train: 1 id (0001) of 5 without image" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "found.json").read_text())["faults"]) == 1


def test_what_is_no_data_set_is_told():
    with pytest.raises(UserError, match="use one of nyud, pascal"):
        check_data_set("nuyd", ".")
    with pytest.raises(UserError, match="needs a root"):
        check_data_set("pascal", None)
