"""A seventh task, defined outside of the package and registered by one line, goes all the way that the six go."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards
from fgmoe_dist.data.stream import evaluation_samples
from fgmoe_dist.drawing.panel import panel
from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.predictions import write_predictions
from fgmoe_dist.evaluation.score_files import score
from fgmoe_dist.evaluation.scorer import Scorer
from fgmoe_dist.evaluation.table import print_scores
from fgmoe_dist.reports.page import write_report
from fgmoe_dist.tasks import TASKS, baselines, create_tasks, headlines
from fgmoe_dist.tracking.compare import RunRecord, compare
from fgmoe_dist.training.scoring import run_score
from fgmoe_dist.verbs import score as score_verb
from tests.archives import save
from tests.tasks.albedo import Albedo

H, W = 10, 12


@pytest.fixture
def albedo(monkeypatch):
    monkeypatch.setitem(TASKS, "albedo", Albedo)
    (task,) = create_tasks(["albedo"], SimpleNamespace(tasks=["albedo"], classes={}))
    return task


def sample(id_: str) -> dict:
    """A grey wall, white to the right; the first row has no label."""
    albedo_HWC = np.full((H, W, 3), 0.25, np.float32)
    albedo_HWC[:, W // 2 :] = 0.75
    albedo_HWC[0] = np.nan
    return {"id": id_, "image": np.zeros((H, W, 3), np.uint8), "albedo": albedo_HWC}


def test_loss_and_prediction(albedo):
    target = torch.from_numpy(sample("a")["albedo"]).permute(2, 0, 1)[None]
    prediction = torch.zeros(1, 3, H, W, requires_grad=True)  # 0.5 everywhere
    loss = albedo.loss(prediction, target)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 16) and prediction.grad.isfinite().all()
    predicted = albedo.predict(prediction.detach()[0])
    assert predicted.shape == (H, W, 3) and predicted.dtype == np.float32 and (predicted == 0.5).all()


def test_meter_and_baseline_in_an_evaluation(albedo):
    meters, constants = {"albedo": albedo.meter()}, baselines([albedo])
    with Scorer(meters, constants, workers=0) as scorer:
        for id_ in "ab":
            scorer.update(sample(id_), {"albedo": np.full((H, W, 3), 0.75, np.float32)})
    assert meters["albedo"].compute() == pytest.approx({"rmse": 0.5**1.5, "mae": 0.25})
    assert constants["albedo"].compute() == pytest.approx({"rmse": 0.25})  # the mean, 0.5
    assert run_score([albedo], {"albedo": meters["albedo"].compute()}) == pytest.approx(-100 * 0.5**1.5)


def test_a_task_without_a_baseline_has_an_empty_cell(albedo, monkeypatch, capsys):
    monkeypatch.delattr(Albedo, "baseline")
    assert baselines([albedo]) == {}
    print_scores([albedo], {"albedo": {"rmse": 0.5, "mae": 0.25}}, "step 1", {"depth": {"rmse": 1.0}})
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "rmse" in line]
    assert [cell.strip() for cell in row.strip()[1:-1].split("│")] == ["albedo", "rmse", "lower", "0.5", ""]


def test_panel(albedo):
    one = sample("a")
    column = albedo.column([np.full((H, W, 3), 2.0, np.float32)], [one["albedo"]])
    assert column.title == "albedo" and (column.predictions[0] == 255).all()
    assert (column.truths[0][1, :6] == 64).all() and (column.truths[0][1, 6:] == 191).all()
    without = panel(one["image"], {"albedo": one["albedo"]}, None, [albedo])
    assert panel(one["image"], {"albedo": one["albedo"]}, one, [albedo]).shape[0] > without.shape[0]


@dataclass(frozen=True)
class MemoryPart:
    ids: tuple[str, ...]

    def samples(self, tasks):
        return map(sample, self.ids)


@pytest.fixture
def predictions(tmp_path):
    for id_, value in (("a", 0.75), ("b", 0.25)):
        write_predictions(tmp_path / "out", id_, {"albedo": np.full((H, W, 3), value, np.float32)})
    return tmp_path / "out"


def test_saved_predictions_and_report(albedo, predictions, tmp_path):
    parts = [MemoryPart(("a", "b"))]
    scored = score(parts, [albedo], predictions)
    assert scored.scores()["albedo"]["rmse"] == pytest.approx(0.5**1.5)
    page = write_report(tmp_path / "report", [albedo], scored, parts, predictions, "T", "S").read_text()
    assert "albedo" in page and page.count("data:image/") == 2 * 3  # best and worst; image, prediction, truth


def test_the_verb(albedo, predictions, tmp_path, monkeypatch, capsys):
    info = SimpleNamespace(tasks=("albedo",), classes={}, dataset="mine")
    monkeypatch.setattr(score_verb, "_labels", lambda args, only: (info, [MemoryPart(("a", "b"))]))
    (tmp_path / "single.json").write_text('{"albedo": {"rmse": 0.5}}')
    parser = argparse.ArgumentParser()
    score_verb.add_arguments(parser)
    words = ["--predictions", predictions, "--json", tmp_path / "a.json", "--baseline", tmp_path / "single.json"]
    score_verb.run(parser.parse_args([*map(str, words), "--workers", "1"]))
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["delta_m"]["percent"] == pytest.approx(100 * (1 - 0.5**0.5))
    assert f"{100 * (1 - 0.5**0.5):+.2f} %" in capsys.readouterr().out


def test_runs_are_compared_by_it(albedo):
    runs = [RunRecord(name, "FINISHED", {}, scores={"albedo": {"rmse": v}}) for name, v in (("a", 0.5), ("b", 0.4))]
    row, gain = [row for row in compare(runs) if row.section == "score"]
    assert row.name == "albedo rmse (lower is better)" and row.best == {1} and gain.cells == ("0", "+20.00 %")
    assert headlines([albedo]) == {"albedo": {"metric": "rmse", "lower_is_better": True, "scale": 100.0}}


def test_a_data_set_may_have_it_and_must_mean_the_same_by_it(albedo, tmp_path):
    (tmp_path / "ids.txt").write_text("a")
    for name in ("image", "albedo"):
        save(tmp_path / f"{name}-a.png", np.full((H, W, 3), [255, 0, 51]))
    section = {"file": "albedo-{id}.png"}  # its kind is known
    description = {"name": "own", "image": {"file": "image-{id}.png"}, "splits": {"train": "ids.txt"}}
    (tmp_path / "own.yaml").write_text(json.dumps({**description, "tasks": {"albedo": section}}))
    shardset = build_shards(open_layout(tmp_path / "own.yaml"), "train", tmp_path / "train")
    assert shardset.tasks == ("albedo",) and shardset.definitions == {}
    ((found, _),) = evaluation_samples(shardset, ["albedo"], transform=lambda sample: sample["image"])
    np.testing.assert_allclose(found["albedo"][0, 0], [1, 0, 0.2], rtol=1e-6)
    wrong = {**section, "range": [0, 255]}  # the bytes would be decoded to other values than they code
    (tmp_path / "own.yaml").write_text(json.dumps({**description, "tasks": {"albedo": wrong}}))
    with pytest.raises(UserError, match=r"tasks.albedo describes VectorMap\(.*255.0\)\), but this task has VectorMap"):
        open_layout(tmp_path / "own.yaml")
