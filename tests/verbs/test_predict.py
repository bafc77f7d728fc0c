import argparse
import json
import os
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fgmoe_dist.checkpoints import checkpoint
from fgmoe_dist.errors import CannotWrite, UserError
from fgmoe_dist.evaluation.predictions import write_predictions
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.edge import Edge
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.semseg import Semseg
from fgmoe_dist.verbs import predict

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


class Model:
    encoder = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    tasks = [Semseg("semseg", ["wall", "floor"]), Depth(), Normals(), Edge("edge", 0.01)]

    def to(self, device):
        return self

    def parameters(self):
        return iter([torch.zeros(1)])

    def predict(self, image_B3HW):
        size_hw = image_B3HW.shape[-2:]
        normals = np.zeros((*size_hw, 3), np.float32)
        normals[..., 2] = -1
        return {
            "semseg": [np.ones(size_hw, np.uint8)],
            "depth": [np.full(size_hw, 2.5, np.float32)],
            "normals": [normals],
            "edge": [np.full(size_hw, 128, np.uint8)],
        }


@pytest.fixture
def call(monkeypatch):
    config = SimpleNamespace(data=SimpleNamespace(image_size=(32, 32)))
    monkeypatch.setattr(checkpoint, "load_model", lambda path: (Model(), config, None))

    def call(*words):
        parser = argparse.ArgumentParser()
        predict.add_arguments(parser)
        predict.run(parser.parse_args(["--checkpoint", "x", *map(str, words)]))

    return call


def test_predictions_and_panels_are_written(call, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "in" / "a.png")
    Image.fromarray(IMAGE).save(tmp_path / "in" / "b.jpg")
    call("--input", tmp_path / "in", "--output", tmp_path / "out", "--json", tmp_path / "out.json")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = ("semseg/{}.png", "depth/{}.npy", "normals/{}.npy", "edge/{}.png", "panels/{}.png")
    assert written == {name.format(image_id) for name in names for image_id in "ab"}
    assert np.asarray(Image.open(tmp_path / "out/semseg/a.png")).tolist() == np.ones((40, 60)).tolist()
    depth = np.load(tmp_path / "out/depth/b.npy", allow_pickle=False)
    assert depth.dtype == np.float32 and depth.shape == (40, 60) and (depth == 2.5).all()
    assert np.load(tmp_path / "out/normals/a.npy").shape == (40, 60, 3)
    assert json.loads((tmp_path / "out.json").read_text())["images"] == 2


def test_a_single_file_without_panels(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    call("--input", tmp_path / "a.png", "--output", tmp_path / "out", "--no-panels")
    assert not (tmp_path / "out" / "panels").exists() and (tmp_path / "out" / "edge" / "a.png").exists()


def test_bad_images_stop_or_are_skipped(call, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    Image.fromarray(IMAGE).save(tmp_path / "in" / "b.png")
    with pytest.raises(UserError, match="a.png"):
        call("--input", tmp_path / "in", "--output", tmp_path / "out")
    call("--input", tmp_path / "in", "--output", tmp_path / "out", "--skip-bad")
    assert "a.png: is empty" in capsys.readouterr().out and (tmp_path / "out" / "depth" / "b.npy").exists()


def test_an_output_that_cannot_be_is_the_users_error(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--output"):
        call("--input", tmp_path / "a.png", "--output", tmp_path / "a.png" / "out")


def test_what_is_in_the_way_or_has_no_room_ends_it_in_a_line(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    words = "--input", tmp_path / "a.png", "--output", tmp_path / "out"
    call(*words)
    for name in ("semseg/a.png", "depth/a.npy", "panels/a.png"):
        (tmp_path / "out" / name).unlink()
        (tmp_path / "out" / name).mkdir()
        with pytest.raises(CannotWrite, match=f"{name}: cannot be written .Is a directory"):
            call(*words)
        (tmp_path / "out" / name).rmdir()
        call(*words)
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize("bytes_", [1, 100, 9000])
def test_a_disk_that_fills_up_leaves_no_half_prediction(tmp_path, bytes_):
    arrays = {"semseg": IMAGE[..., 0], "depth": np.zeros((40, 60), np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, limits[1]))
    try:
        with pytest.raises(CannotWrite, match="cannot be written .File too large"):
            write_predictions(tmp_path, "a", arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(np.array_equal(np.array(Image.open(path)), arrays["semseg"]) for path in written)
    assert {path.suffix for path in written} <= {".png"}


def test_labels_of_a_person_are_not_predicted_over(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (tmp_path / "labels/semseg").mkdir(parents=True)
    (tmp_path / "labels/semseg/a.png").write_bytes(b"mine")
    for more in ((), ("--no-panels",)):
        with pytest.raises(UserError, match="--output .*labels holds what is not predictions of ours"):
            call("--input", tmp_path / "a.png", "--output", tmp_path / "labels", *more)
    assert [path.read_bytes() for path in tmp_path.rglob("labels/*/*")] == [b"mine"]


def test_the_same_command_twice_is_one(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    for more in (("--no-panels",), ("--no-panels",), (), ()):
        call("--input", tmp_path / "a.png", "--output", tmp_path / "out", *more)


@pytest.mark.parametrize("name", [b"b\xff.png", b"n\nl.png", b"x" * 251 + b".png", "漢 字.jpeg".encode(), b"a.b.c.png"])
def test_odd_file_names_are_predicted_on(call, tmp_path, name, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.path.join(os.fsencode(tmp_path / "in"), name))
    call("--input", tmp_path / "in", "--output", tmp_path / "out", "--json", tmp_path / "out.json")
    (image_id,) = [path.stem for path in (tmp_path / "out/semseg").iterdir()]
    assert os.fsencode(image_id) == name.rpartition(b".")[0].replace(b".", b"_")
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 5
    assert capsys.readouterr().out.count("\n") == 1


def test_a_file_name_that_leaves_no_room_for_predictions_is_named(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / ("x" * 253 + ".b"))
    with pytest.raises(UserError, match="its name is too long"):
        call("--input", tmp_path / ("x" * 253 + ".b"), "--output", tmp_path / "out")


def test_a_bad_image_ends_it_saying_what_is_done(call, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abd":
        Image.fromarray(IMAGE).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in/c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="c.png: is no image.*; 2 of 4 images are done and in .*out, --skip-bad"):
        call("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/depth").iterdir()) == ["a.npy", "b.npy"]
