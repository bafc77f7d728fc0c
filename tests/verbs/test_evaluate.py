"""`fgmoe evaluate` on a trained checkpoint, against `fgmoe score` on the predictions it saved."""

import json

import pytest

from tests.runs import fgmoe


@pytest.mark.dist
def test_its_numbers_are_those_of_score_on_its_saved_predictions(runs, nyud_shards, tmp_path):
    runs.train("run", 1, train__steps=1, train__batch_size=2, train__evaluate_every=0)
    fgmoe(
        "evaluate", "--checkpoint", runs.folder("run"), "--predictions", tmp_path / "out", "--json", tmp_path / "a.json"
    )
    fgmoe("score", "--shards", nyud_shards.val, "--predictions", tmp_path / "out", "--json", tmp_path / "b.json")
    evaluated, scored = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert evaluated.keys() == scored.keys() == {"semseg", "depth", "normals", "edge"}
    for task, metrics in evaluated.items():
        assert scored[task] == pytest.approx(metrics, rel=1e-9)
