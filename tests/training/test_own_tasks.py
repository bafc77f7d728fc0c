"""Tasks that a data set defines, one of each kind, from its files through training to scores and predictions."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards
from tests.archives import save
from tests.ranks import run_ranks
from tests.runs import ROOT, Runs, environment
from tests.training.test_trainer import evaluate_verb

HW = (90, 110)
TASKS = {
    "species": {"kind": "classes", "file": "species/{id}.png", "classes": [f"s{n}" for n in range(300)]},
    "rust": {"kind": "binary", "file": "rust/{id}.png"},
    "heat": {"kind": "scalar", "file": "heat/{id}.npy", "unit": "K", "scales": "none", "metric": "abs_rel"},
    "tint": {"kind": "vectors", "file": "tint/{id}.png", "invalid": [0, 0, 0]},
    "wind": {"kind": "vectors", "file": "wind/{id}.npy", "channels": 2, "unit": True},
    "creases": {"kind": "boundary", "file": "creases/{id}.png", "max_dist": 0.02},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Shards of six images, the last of which lacks every label but one."""
    root = tmp_path_factory.mktemp("own")
    for folder in ("images", *TASKS):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for id_ in "abcdef":
        save(root / f"images/{id_}.png", rng.integers(0, 256, (*HW, 3)))
        save(root / f"rust/{id_}.png", 255 * rng.integers(0, 2, HW))
        if id_ == "f":
            continue
        Image.fromarray(rng.integers(0, 300, HW).astype(np.uint16)).save(root / f"species/{id_}.png")
        np.save(root / f"heat/{id_}.npy", np.where(rng.random(HW) < 0.1, np.nan, rng.normal(300, 20, HW)))
        save(root / f"tint/{id_}.png", rng.integers(0, 256, (*HW, 3)) * rng.integers(0, 2, (*HW, 1)))
        np.save(root / f"wind/{id_}.npy", rng.normal(size=(*HW, 2)))
        crease_HW = np.zeros(HW)
        crease_HW[:, rng.integers(10, 100)] = 255
        save(root / f"creases/{id_}.png", crease_HW)
    (root / "train.txt").write_text("a b c d")
    (root / "val.txt").write_text("e f")
    splits = {"train": "train.txt", "val": "val.txt"}
    description = {"name": "own", "image": {"file": "images/{id}.png"}, "splits": splits, "tasks": TASKS}
    (root / "own.yaml").write_text(json.dumps(description))
    for split in splits:
        build_shards(open_layout(root / "own.yaml"), split, root / split, samples_per_shard=2)
    return Runs(root, root / "train", root / "val")


def fgmoe(*words):
    command = [sys.executable, "-m", "fgmoe_dist.cli", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.dist
def test_they_are_trained_evaluated_predicted_and_scored(home):
    changes = {"tasks": list(TASKS), "train__steps": 2, "train__pictures": 1, "train__loss_weights": "{heat: 0.01}"}
    lines = home.train("run", 2, **changes)
    assert {f"loss/{task}" for task in TASKS} <= lines[0].keys()
    assert all(np.isfinite(value) for line in lines for key, value in line.items() if key.startswith("loss"))
    own = json.loads((home.folder("run") / "eval/2.json").read_text())
    assert {task: next(iter(scores)) for task, scores in own.items()} == {
        "species": "mIoU", "rust": "maxF", "heat": "abs_rel", "tint": "rmse", "wind": "mean", "creases": "odsF",
    }  # fmt: skip
    assert list((home.folder("run") / "pictures/2").glob("*.png"))
    (again,) = run_ranks(1, evaluate_verb, home.folder("run"), home.root / "again.json")
    for task, scores in own.items():
        assert again[task] == pytest.approx(scores, rel=1e-4, nan_ok=True), task
    out = home.root / "predicted"
    fgmoe("predict", "--checkpoint", home.folder("run"), "--input", home.root / "images", "--output", out)
    assert np.array(Image.open(out / "species/e.png")).dtype == np.uint16
    assert np.load(out / "heat/e.npy").shape == HW and np.load(out / "tint/e.npy").shape == (*HW, 3)
    np.testing.assert_allclose(np.linalg.norm(np.load(out / "wind/e.npy"), axis=-1), 1, atol=1e-5)
    where = ["--json", home.root / "scored.json", "--report", home.root / "report", "--workers", 1]
    fgmoe("score", "--dataset", home.root / "own.yaml", "--predictions", out, *where)
    scored = json.loads((home.root / "scored.json").read_text())
    for task, scores in own.items():
        assert scored[task] == pytest.approx(scores, rel=1e-3, nan_ok=True), task
