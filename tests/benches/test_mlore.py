"""`fgmoe bench mlore` compares what it times, and its ratios are those of its seconds."""

from __future__ import annotations

import argparse
import json

import pytest

from fgmoe_dist.benches import mlore as bench
from fgmoe_dist.errors import UserError

SIZES = {"images": 2, "tasks": 2, "channels": 8, "top-k": 2, "rounds": 2}
SMALL = ["--ranks", "2", "3", "4", "--grid", "4", "5", *(w for k, v in SIZES.items() for w in (f"--{k}", str(v)))]


def figures_of(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return json.loads(json.dumps(bench.run(parser.parse_args([*SMALL, *words]))))


def test_every_form_is_timed_and_compared(capsys):
    figures = figures_of("--dtype", "fp32", "bf16")
    assert [point["dtype"] for point in figures["points"]] == ["fp32", "bf16"]
    for point, bound in zip(figures["points"], (1e-5, 5e-2)):
        assert set(point["training"]["seconds"]) == {"one by one", "wide"}
        assert set(point["evaluation"]["seconds"]) == {"one by one", "wide", "merged"}
        for stage in ("training", "evaluation"):
            found = point[stage]
            for name, seconds in found["seconds"].items():
                assert len(found["rounds_seconds"][name]) == 2
                assert found["times_faster"][name] == found["seconds"]["one by one"] / seconds
            assert 0 < found["difference"] < bound
    assert "merged" in capsys.readouterr().out


def test_forms_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setitem(bench.AGREEMENT, "fp32", 0.0)
    with pytest.raises(RuntimeError, match="timing them means nothing"):
        figures_of()


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="--top-k 4 is more than the 3 experts"):
        figures_of("--top-k", "4")
    with pytest.raises(UserError, match="--grid .* has to be 1 or more"):
        figures_of("--grid", "0", "3")
