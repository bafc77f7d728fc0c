"""`fgmoe plan` as a user calls it: the table, the figures, the mistakes."""

from __future__ import annotations

import json

import pytest
import yaml

from fgmoe_dist.cli import main
from fgmoe_dist.files import write_json
from fgmoe_dist.planning.profile import machine_json
from tests.planning.machines import machine
from tests.runs import SETTINGS


@pytest.fixture
def plan(tmp_path, capsys):
    """Runs `fgmoe plan` on the tiny configuration; what it printed and the figures."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))

    def run(*arguments: str) -> tuple[str, dict]:
        main(["plan", "--config", str(tmp_path / "tiny.yaml"), "--json", str(tmp_path / "plan.json"), *arguments])
        return capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())

    return run


def refused(monkeypatch, *arguments: str) -> str:
    """The one line that a mistake is told in."""
    told = []
    monkeypatch.setattr("fgmoe_dist.ranks.exit_with_error", told.append)
    main(["plan", *arguments])
    assert type(told[0]).__name__ == "UserError" and "\n" not in str(told[0])
    return str(told[0])


def test_memory_and_traffic_need_no_machine(plan):
    printed, figures = plan("--nodes", "2", "--gpus-per-node", "2")
    assert "best: ep_size=" in printed and "--machine" in printed and "moments" in printed
    assert [one["ep_size"] for one in figures["candidates"]] == [1, 2, 4]
    for one in figures["candidates"]:
        assert one["seconds"] is None and one["memory_bytes"] == pytest.approx(sum(one["memory"].values()))


def test_with_a_machine_the_parts_of_a_step_add_up(plan, tmp_path):
    profile = tmp_path / "machine.json"
    write_json(profile, machine_json(machine(internode=None, internode_source="unknown")))
    printed, figures = plan("--nodes", "4", "--machine", str(profile), "--internode-gbps", "100", "--ep-size", "4")
    (one,) = figures["candidates"]
    assert one["seconds"] == pytest.approx(sum(part["seconds"] for part in one["parts"]))
    assert "links between nodes assumed" in printed and figures["internode"] == "assumed"
    assert one["fits"] and figures["best_ep_size"] == 4 and figures["why"] == "the one asked for"


def test_what_a_limit_leaves_out_is_said(plan):
    limit = ("--set", "experts.max_ranks_per_token=1", "--set", "experts.top_k=2")
    printed, figures = plan("--gpus-per-node", "8", "--set", "train.batch_size=8", *limit)
    assert [one["ep_size"] for one in figures["candidates"]] == [1, 2, 4]
    assert "left out: ep_size=8, experts.max_ranks_per_token=1" in printed and list(figures["left_out"]) == ["8"]


def test_thousands_of_gpus(plan):
    _, figures = plan("--nodes", "1024", "--gpus-per-node", "8", "--set", "train.batch_size=8192")
    assert [one["ep_size"] for one in figures["candidates"]] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--memory-gib", "-1"], "--memory-gib -1: must be above 0"),
        (["--internode-gbps", "0"], "--internode-gbps 0: must be above 0"),
        (["--imbalance", "0.5"], "--imbalance 0.5"),
        (["--imbalance", "nan"], "--imbalance nan"),
        (["--memory-gib", "nan"], "--memory-gib nan: must be above 0"),
        (["--internode-gbps", "100"], "--internode-gbps 100: says nothing without --machine"),
        (["--internode-latency-us", "5"], "--internode-latency-us 5: says nothing without --internode-gbps"),
        (["--machine", "/nowhere.json"], "fgmoe bench machine"),
        (["--gpus-per-node", "4", "--ep-size", "3"], "possible: 1, 2, 4"),
        (["--gpus-per-node", "3"], "train.batch_size=4 is not a multiple"),
        (["--memory-gib", "0.001"], "no ep_size fits into 0.00 GiB per rank"),
    ],
)
def test_mistakes_are_told_with_the_cure(arguments, told, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    assert told in refused(monkeypatch, "--config", str(tmp_path / "tiny.yaml"), *arguments)
