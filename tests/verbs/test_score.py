"""`fgmoe score` on a tiny archive: files in, JSON out."""

import argparse
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist import cli
from fgmoe_dist.errors import UserError
from fgmoe_dist.verbs import score
from tests.pictures import RGB, write_png

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


def test_a_described_data_set(archive):
    (archive / "mine.yaml").write_text(
        """
name: mine
root: NYUDv2
image: {file: "images/{id}.png"}
splits: {val: gt_sets/val.txt}
tasks:
  depth: {file: "depth/{id}.npy"}
  edge: {file: "edge/{id}.png", encoding: regions, max_dist: 0.011}
"""
    )
    described = "--dataset", archive / "mine.yaml", "--predictions", archive / "predictions"
    call(*described, "--json", archive / "mine.json", "--report", archive / "report")
    call(*of(archive), "--tasks", "depth", "edge", "--json", archive / "nyud.json")
    assert json.loads((archive / "mine.json").read_text()) == json.loads((archive / "nyud.json").read_text())
    page = (archive / "report" / "index.html").read_text()
    assert "2 images of mine val in " in page and page.count("data:image/") == 2 * 2 * 3 + 2


# ---- faults: one line, exit code 2 ----

RAMP = np.linspace(0, 255, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
FAULTS = {
    "missing": ("depth/0002", None, "depth/0002.png or .npy is missing: predict it"),
    "wrong size": (
        "depth/0002.npy",
        np.ones((30, 40), np.float32),
        "depth for image 0002 is 30 x 40, the label is 60 x",
    ),
    "a channel too many": ("semseg/0002.png", np.zeros((*SHAPE, 3), np.uint8), "is 60 x 80 x 3, the label is 60 x 80;"),
    "an alpha channel": ("normals/0002.png", np.zeros((*SHAPE, 4), np.uint8), "normals for image 0002 is 60 x 80 x 4"),
    "16-bit depth": ("depth/0002.png", np.full(SHAPE, 2000, np.uint16), "has type uint16; save float32 metres"),
    "depth in whole metres": ("depth/0002.npy", np.full(SHAPE, 2), "has type int64; save float32 metres"),
    "depth in millimetres": ("depth/0002.npy", np.full(SHAPE, 2000.0), "is 2e+03 m at the median; save metres"),
    "not a number": ("depth/0002.npy", np.full(SHAPE, np.nan), "has 4800 values that are NaN or infinite"),
    "logits": ("edge/0002.npy", RAMP.astype(np.float32), "has type float32; save uint8(255 * probability)"),
    "a bilevel picture": ("edge/0002.png", RAMP > 100, "edge for image 0002 has type bool; save uint8(255 * prob"),
    "class out of range": ("semseg/0002.png", np.full(SHAPE, 40, np.uint8), "has class 40; save class ids 0..39"),
    "ignore in a prediction": ("semseg/0002.png", np.full(SHAPE, 255, np.uint8), "has class 255; save class ids 0..39"),
    "undecoded normals": (
        "normals/0002.npy",
        np.full((*SHAPE, 3), 255.0),
        "has components up to 255; save unit vectors",
    ),
}


def fault_line(monkeypatch, capsys, *words):
    """What `fgmoe score` says when it ends with code 2: exactly one line on standard error, beside progress."""

    class Ended(Exception):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match="^2$"):
        cli.main(["score", "--workers", "1", *map(str, words)])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scoring: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_prediction_is_named_with_the_cure(archive, monkeypatch, capsys, fault):
    name, content, message = FAULTS[fault]
    task, _, file = name.partition("/")
    for path in (archive / "predictions" / task).glob(f"{file[:4]}.*"):
        path.unlink()
    if content is not None:
        save(archive / "predictions" / name, content)
    line = fault_line(monkeypatch, capsys, *of(archive), "--tasks", task)
    assert message in line and task in line and "0002" in line


def _palette(path, values, colours):
    image = Image.fromarray(values)
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(path)


def _normals(archive, decode):
    """Labels that look every way, and a perfect prediction in another form."""
    rng = np.random.default_rng(0)
    for id_ in ("0001", "0002"):
        vector = rng.normal(size=(*SHAPE, 3))
        coded = np.round((vector / np.linalg.norm(vector, axis=-1, keepdims=True) + 1) * 127.5).astype(np.uint8)
        save(archive / "NYUDv2/normals" / f"{id_}.png", coded)
        (archive / "predictions/normals" / f"{id_}.png").unlink()
        save(archive / "predictions/normals" / f"{id_}.npy", decode(coded).astype(np.float32))


def _all(archive, task, change):
    for path in (archive / "predictions" / task).iterdir():
        array = np.load(path) if path.suffix == ".npy" else np.array(Image.open(path))
        save(path, change(array))


WHOLE_SETS = {
    "edges of 0 and 1": ("edge", lambda a: _all(a, "edge", lambda x: x // 255), "no other values than 0 and 1"),
    "normals left in 0..1": ("normals", lambda a: _normals(a, lambda x: x / 255), "left in 0 .. 1? Save 2x - 1"),
    "normals as BGR": (
        "normals",
        lambda a: _normals(a, lambda x: x[..., ::-1] * (2 / 255) - 1),
        "only if their channels are [z, y, x] (red and blue exchanged)",
    ),
    "depth a tenth": ("depth", lambda a: _all(a, "depth", lambda x: x / 15), "are 0.1 times the labels everywhere"),
    "depth in kilometres": ("depth", lambda a: _all(a, "depth", lambda x: x / 1500), "are 0.001 times the labels"),
}


@pytest.mark.parametrize("fault", WHOLE_SETS)
def test_a_whole_set_in_another_encoding_is_refused_with_the_likely_reason(archive, monkeypatch, capsys, fault):
    task, change, message = WHOLE_SETS[fault]
    change(archive)
    line = fault_line(monkeypatch, capsys, *of(archive), "--tasks", task)
    assert f"predictions/{task} " in line and message in line


def test_class_ids_that_count_from_1_are_refused_over_the_set(archive, monkeypatch, capsys):
    bands = np.repeat(np.arange(4), 15)[:, None] + np.zeros(SHAPE, int)  # classes 0 to 3, 1 to 4 on disk
    for id_ in ("0001", "0002"):
        save(archive / "NYUDv2/segmentation" / f"{id_}.png", (bands + 1).astype(np.uint8))
        save(archive / "predictions/semseg" / f"{id_}.png", (bands + 1).astype(np.uint8))
    line = fault_line(monkeypatch, capsys, *of(archive), "--tasks", "semseg")
    assert "are one above the labels' class ids, which count from 0: subtract 1" in line


def test_pictures_of_any_form_score_what_they_show(archive):
    """A palette's greys, two and four bits, a 16-bit picture of normals: the scores of plain ones."""
    call(*of(archive), "--json", archive / "plain.json")
    edge = np.array(Image.open(archive / "predictions/edge/0001.png"))
    _palette(archive / "predictions/edge/0001.png", (edge == 0).astype(np.uint8), [(255,) * 3, (0,) * 3])
    write_png(archive / "predictions/edge/0002.png", edge // 17, 4)
    write_png(archive / "predictions/semseg/0001.png", np.zeros(SHAPE), 2)
    _palette(archive / "predictions/semseg/0002.png", np.zeros(SHAPE, np.uint8), [(9, 99, 199)])
    facing = np.array(Image.open(archive / "predictions/normals/0001.png")).astype(int)
    write_png(archive / "predictions/normals/0001.png", facing * 257, 16, RGB)
    call(*of(archive), "--json", archive / "odd.json")
    plain, odd = (json.loads((archive / f"{name}.json").read_text()) for name in ("plain", "odd"))
    assert odd.pop("normals")["mean"] == pytest.approx(plain.pop("normals")["mean"], abs=0.01)
    assert odd == plain


@pytest.mark.parametrize(("name", "content", "message"), [
    ("semseg", "gif", "is a GIF"), ("edge", "colours", "neither black nor white"), ("depth", "npz", "an .npz archive"),
    ("depth", "complex", "values of type complex128"), ("normals", "text", "values of type <U3"),
])  # fmt: skip
def test_odd_files_of_predictions_are_one_line(archive, monkeypatch, capsys, name, content, message):
    folder = archive / "predictions" / name
    for path in folder.glob("0001.*"):
        path.unlink()
    if content == "gif":
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / "0001.png", "GIF")
    elif content == "colours":
        _palette(folder / "0001.png", np.zeros(SHAPE, np.uint8), [(128, 0, 0)])
    elif content == "npz":
        with (folder / "0001.npy").open("wb") as file:
            np.savez(file, depth=np.ones(SHAPE))
    else:
        np.save(folder / "0001.npy", np.ones(SHAPE, complex) if content == "complex" else np.full((*SHAPE, 3), "0.5"))
    line = fault_line(monkeypatch, capsys, *of(archive), "--tasks", name)
    assert message in line and f"{name}/0001" in line


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n cut off", b"GIF89a"])
def test_a_damaged_picture_is_named(archive, monkeypatch, capsys, content):
    (archive / "predictions/semseg/0001.png").write_bytes(content)
    assert "semseg/0001.png cannot be read" in fault_line(monkeypatch, capsys, *of(archive))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 an archive", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x04\x00{}  "]
)
def test_a_damaged_array_is_named(archive, monkeypatch, capsys, content):
    (archive / "predictions/depth/0001.npy").write_bytes(content)
    assert "depth/0001.npy cannot be read (" in fault_line(monkeypatch, capsys, *of(archive))


def test_a_picture_that_claims_to_be_enormous_is_named(archive, monkeypatch, capsys):
    picture = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0), b"IDAT"):
        picture += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (archive / "predictions/semseg/0001.png").write_bytes(picture)
    assert "semseg/0001.png cannot be read (Image size" in fault_line(monkeypatch, capsys, *of(archive))


def test_a_task_named_twice_counts_once(archive):
    (archive / "single.json").write_text('{"semseg": {"mIoU": 2.0}, "depth": {"rmse": 2.0}}')
    words = *of(archive), "--baseline", archive / "single.json", "--json", archive / "a.json"
    call(*words, "--tasks", "depth", "depth", "semseg")
    assert json.loads((archive / "a.json").read_text())["delta_m"] == {"percent": 37.5, "depth": 50, "semseg": 25}


WORDS = {
    "--root needs --dataset nyud": lambda a: ("--root", a / "NYUDv2"),
    "give one of the two": lambda a: ("--shards", a, "--dataset", "nyud"),
    "--shards, or from --dataset": lambda a: (),
    "use one of nyud, pascal, or a .yaml file": lambda a: ("--dataset", "nyu", "--root", a / "NYUDv2"),
    "split is 'test': use one of train, val": lambda a: (*of(a), "--split", "test"),
    "depth2": lambda a: (*of(a), "--tasks", "depth2"),
    "has no edge/": lambda a: (*of(a), "--predictions", a / "half", "--tasks", "depth", "edge"),
    "has none of semseg, depth, normals, edge": lambda a: (*of(a), "--predictions", a),
    "single.json has no rmse of depth": lambda a: (*of(a), "--tasks", "depth", "--baseline", a / "single.json"),
    "broken.json cannot be read": lambda a: (*of(a), "--baseline", a / "broken.json"),
    "--json": lambda a: (*of(a), "--json", a / "nowhere" / "scores.json"),
    "--report": lambda a: (*of(a), "--tasks", "depth", "--report", a / "single.json"),
    "cannot read the id list": lambda a: (*of(a), "--images", a / "none.txt"),
}


@pytest.mark.parametrize("message", WORDS)
def test_bad_arguments_are_named(archive, monkeypatch, capsys, message):
    (archive / "half" / "depth").mkdir(parents=True)
    (archive / "single.json").write_text('{"semseg": {"mIoU": 3.0}}')
    (archive / "broken.json").write_text("{")
    words = WORDS[message](archive)
    if "--predictions" not in words:
        words += ("--predictions", archive / "predictions")
    assert message in fault_line(monkeypatch, capsys, *words)


def test_it_starts_without_torch():
    """Two seconds a start, and as much again in every worker."""
    program = (
        "import sys, fgmoe_dist.tasks, fgmoe_dist.verbs.score, fgmoe_dist.evaluation.score_files\n"
        "import fgmoe_dist.reports.page, fgmoe_dist.data.layouts.own\n"
        "sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
