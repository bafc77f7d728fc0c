import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fgmoe_dist.checkpoints import checkpoint
from fgmoe_dist.errors import UserError
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
    assert (
        "a.png cannot be read (0 bytes long)" in capsys.readouterr().out
        and (tmp_path / "out" / "depth" / "b.npy").exists()
    )


def test_an_output_that_cannot_be_is_the_users_error(call, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--output"):
        call("--input", tmp_path / "a.png", "--output", tmp_path / "a.png" / "out")
