"""Scores as files: NaN, and what is no file of scores."""

import json

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.scores_json import read_scores
from fgmoe_dist.files import write_json


def test_nan_is_null_and_back(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"depth": {"rmse": float("nan"), "abs_rel": 0.5}})
    assert "NaN" not in path.read_text()
    assert read_scores(path) == {"depth": {"rmse": None, "abs_rel": 0.5}}


@pytest.mark.parametrize("value", [[], {"depth": 1.0}, {"depth": {"rmse": "0.5"}}, {"depth": {"rmse": True}}, 3])
def test_other_json_is_refused(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"a.json is not \{task: \{metric: number\}\}; give a file that --json wrote"):
        read_scores(tmp_path / "a.json")


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_unreadable_scores_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="a.json cannot be read"):
        read_scores(tmp_path / "a.json")
