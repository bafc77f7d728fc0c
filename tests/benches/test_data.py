"""The yardstick of `fgmoe bench data` does the loader's job, and the bench tells both."""

import argparse
import json

import numpy as np
import pytest
import torch

from fgmoe_dist.benches import data as bench
from fgmoe_dist.benches import public_loader
from fgmoe_dist.data.augment import TrainTransform
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.errors import UserError
from tests.archives import write_nyud, write_pascal

MEAN_STD = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_the_public_loader_makes_the_same_tensors(dataset, tmp_path, monkeypatch):
    """Without chance (scale 1, no flip, no distortion) both give the same, in padding and marks of their own."""
    layout = open_layout(dataset, {"nyud": write_nyud, "pascal": write_pascal}[dataset](tmp_path / "archive"))
    monkeypatch.setattr(public_loader.random, "uniform", lambda low, high: 1.0)
    monkeypatch.setattr(public_loader.random, "random", lambda: 0.9)
    theirs = public_loader.PublicLoader(layout, (16, 20), *MEAN_STD)[1]
    transform = TrainTransform((16, 20), *MEAN_STD, layout.tasks, scale_range=(1, 1), flip=False, photometric=False)
    ours = transform(layout.read(layout.ids("train")[1]), np.random.default_rng(0))
    assert theirs.keys() | {"id"} == ours.keys()
    torch.testing.assert_close(theirs["image"], ours["image"])
    for task in layout.tasks:
        if task == "normals":
            valid_HW = (theirs[task] != 255).all(0) & ours[task].isfinite().all(0)
            unit_3HW = torch.nn.functional.normalize(theirs[task], dim=0)
            torch.testing.assert_close(unit_3HW[:, valid_HW], ours[task][:, valid_HW], rtol=0, atol=1e-5)
            assert valid_HW.any()
        else:
            torch.testing.assert_close(theirs[task][0], ours[task].float())


def _bench(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_bench_tells_both_loaders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES_HW", {"nyud": ((64, 80), (64, 80))})
    monkeypatch.setattr(bench, "WARM_STEPS", 1)
    options = ("--layouts", "nyud", "--images", 4, "--rounds", 2, "--steps", 2, "--step-ms", 1, "--root", tmp_path)
    figures = json.loads(json.dumps(_bench(*options)))
    nyud = figures["nyud"]
    assert nyud["ratio"] == nyud["images_per_second_per_core"] / nyud["public_images_per_second_per_core"] > 0
    assert 0 <= nyud["wait_share"] <= 1 and len(nyud["rounds_seconds_per_image"]["files"]) == 2
    assert "cores" in figures["machine"]
    assert "images per second per core" in capsys.readouterr().out
    with pytest.raises(UserError, match="--images must be at least 4"):
        _bench("--images", 3)
