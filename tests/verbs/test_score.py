"""`fgmoe score` on a tiny archive: files in, JSON out."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.verbs import score

SHAPE = (60, 80)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


@pytest.fixture
def archive(tmp_path):
    """Two NYUDv2 images: all wall, 2 m away, facing the camera, with one upright edge; and perfect predictions."""
    root, out = tmp_path / "NYUDv2", tmp_path / "predictions"
    edge = np.zeros(SHAPE, np.uint8)
    edge[:, 40] = 255
    facing = np.broadcast_to(np.array([128, 128, 255], np.uint8), (*SHAPE, 3)).copy()
    for id_ in ("0001", "0002"):
        save(root / "images" / f"{id_}.png", np.zeros((*SHAPE, 3), np.uint8))
        save(root / "segmentation" / f"{id_}.png", np.ones(SHAPE, np.uint8))  # 1 on disk is class 0
        save(root / "depth" / f"{id_}.npy", np.full(SHAPE, 2, np.float32))
        save(root / "normals" / f"{id_}.png", facing)
        save(root / "edge" / f"{id_}.png", edge)
        save(out / "semseg" / f"{id_}.png", np.zeros(SHAPE, np.uint8))
        save(out / "depth" / f"{id_}.npy", np.full(SHAPE, 3, np.float32))
        save(out / "normals" / f"{id_}.png", facing)
        save(out / "edge" / f"{id_}.png", edge)
    (root / "gt_sets").mkdir()
    for split in ("train", "val"):
        (root / "gt_sets" / f"{split}.txt").write_text("0001\n0002\n")
    return tmp_path


def call(*words):
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    score.run(parser.parse_args([str(word) for word in (*words, "--workers", 1)]))


def of(archive):
    return "--dataset", "nyud", "--root", archive / "NYUDv2", "--predictions", archive / "predictions"


def test_scores_details_and_delta_m(archive, capsys):
    (archive / "single.json").write_text('{"semseg": {"mIoU": 2.0}, "depth": {"rmse": 2.0}}')
    call(*of(archive), "--json", archive / "all.json", "--details", archive / "details.json")
    scores = json.loads((archive / "all.json").read_text())
    assert scores["semseg"] == pytest.approx({"mIoU": 100 / 40, "mIoU_present": 100})
    assert scores["depth"]["rmse"] == pytest.approx(1)
    assert scores["normals"]["mean"] == pytest.approx(0, abs=1e-4)
    # a vertical line one pixel off the truth is within 0.011 of the diagonal of 100; the border eats a row at each end
    assert scores["edge"]["odsF"] == pytest.approx(100 * 2 * 58 / (58 + 60), abs=2)
    details = json.loads((archive / "details.json").read_text())
    assert details["tasks"]["semseg"]["IoU/wall"] == 100 and details["tasks"]["semseg"]["IoU/floor"] is None
    assert details["images"]["0002"]["depth"]["rmse"] == pytest.approx(1)
    call(
        *of(archive),
        "--tasks",
        "semseg",
        "depth",
        "--baseline",
        archive / "single.json",
        "--json",
        archive / "two.json",
    )
    assert json.loads((archive / "two.json").read_text())["delta_m"]["percent"] == pytest.approx((25 + 50) / 2)
    assert "+37.50 %" in capsys.readouterr().out


def test_a_list_of_images(archive):
    (archive / "predictions" / "depth" / "0002.npy").unlink()
    (archive / "list.txt").write_text("0001\n")
    call(*of(archive), "--images", archive / "list.txt", "--json", archive / "one.json")
    assert json.loads((archive / "one.json").read_text())["depth"]["rmse"] == pytest.approx(1)
    (archive / "list.txt").write_text("0009\n")
    with pytest.raises(UserError, match="no image '0009' in the val split"):
        call(*of(archive), "--images", archive / "list.txt")


def test_faults_are_named(archive):
    with pytest.raises(UserError, match="--root needs --dataset"):
        call("--root", archive / "NYUDv2", "--predictions", archive / "predictions")
    with pytest.raises(UserError, match="has none of semseg"):
        call("--dataset", "nyud", "--root", archive / "NYUDv2", "--predictions", archive)
    (archive / "single.json").write_text("[]")
    with pytest.raises(UserError, match="is not {task: {metric: value}}"):
        call(*of(archive), "--baseline", archive / "single.json")
