"""`fgmoe bench moe` times every contender, and its ratios are those of its seconds."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from fgmoe_dist.benches import moe as bench
from fgmoe_dist.errors import UserError
from tests.ranks import run_ranks

SIZES = {"tasks": 2, "tokens": 16, "top-k": 2, "channels": 16, "hidden": 8, "rounds": 2, "device": "cpu"}
SMALL = ["--experts", "4", "8", *(word for name, size in SIZES.items() for word in (f"--{name}", str(size)))]


def enter(function, arguments):
    import torch
    import torch.distributed as dist

    from fgmoe_dist.ranks import Ranks

    return function(Ranks(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu")), *arguments)


def figures_of(*options, monkeypatch):
    """The bench, on ranks that start fast."""
    monkeypatch.setattr(
        "fgmoe_dist.benches.ranks.on_ranks", lambda world, function, *rest: run_ranks(world, enter, function, rest)[0]
    )
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args([*SMALL, *options]))


def test_every_contender_is_timed_and_compared(monkeypatch, capsys):
    options = ("--ranks", "2", "--dtype", "fp32", "bf16", "--kernels", "auto", "reference")
    figures = json.loads(json.dumps(figures_of(*options, monkeypatch=monkeypatch)))
    assert {"processor", "device", "versions"} == figures["machine"].keys()
    # two precisions and two numbers of experts, and the latter again with fairscale
    assert [point["fairscale"] for point in figures["points"]] == [False] * 4 + [True] * 2
    for point in figures["points"]:
        ours = {f"{what}:{kernel}" for what in ("kernel", "fused", "replicas") for kernel in ("cpu", "reference")}
        stock = {"dense", "deepspeed"} | ({"fairscale"} if point["fairscale"] else set())
        assert point["seconds"].keys() == ours | stock
        for name, seconds in point["seconds"].items():
            assert len(point["rounds_seconds"][name]) == 2 and seconds > 0
            assert point["to_bound"][name] == seconds / point["seconds"]["dense"]
            assert point["times_faster_than_deepspeed"][name] == point["seconds"]["deepspeed"] / seconds
        assert point["largest_relative_difference"] < 0.03
    table = capsys.readouterr().out
    assert "fairscale" in table and "replicas with summed gradients are faster at" in table


@pytest.mark.slow
def test_memory_falls_with_ep_size_and_replicas_are_compared(monkeypatch):
    figures = figures_of("--ranks", "1", "2", "--dtype", "fp32", "--no-fairscale", monkeypatch=monkeypatch)
    numbers = 2 * (16 * 8 + 8 + 8 * 16 + 16)  # of an expert index of both tasks
    for memory in figures["memory"]:
        assert memory["bytes_by_ep_size"] == {ep: memory["experts"] // ep * numbers * 12 for ep in (1, 2)}
        assert memory["share_by_ep_size"] == {1: 1, 2: 0.5}
    assert [(place["experts"], place["kernel"]) for place in figures["replicas"]] == [(4, "cpu"), (8, "cpu")]
    assert [(flat["ranks"], flat["from"], flat["to"]) for flat in figures["flatness"]] == [(1, 4, 8), (2, 4, 8)]


def test_a_single_choice_is_compared_with_the_stock_gates_of_one(monkeypatch):
    """They give it its score as it is; fairscale's want two experts."""
    figures = figures_of(
        "--ranks", "1", "--experts", "1", "4", "--top-k", "1", "--dtype", "fp32", monkeypatch=monkeypatch
    )
    assert [(p["experts"], p["top_k"], p["fairscale"]) for p in figures["points"]] == [
        (1, 1, False), (4, 1, False), (4, 2, True),
    ]  # fmt: skip


def test_points_with_fairscale_are_a_series_of_their_own():
    def point(experts, seconds, fairscale):
        seconds = {"fused:cpu": seconds, "replicas:cpu": 2.0, **({"fairscale": 9.0} if fairscale else {})}
        place = {"ranks": 2, "dtype": "fp32", "tasks": 4, "tokens": 8, "top_k": 2, "fairscale": fairscale}
        memory = {"expert_parameter_bytes": 1, "expert_optimizer_bytes": 1}
        return {**place, "ep_size": 2, "experts": experts, "seconds": seconds, "memory": memory}

    found = bench.summary([point(4, 1.0, False), point(8, 3.0, False), point(4, 1.0, True), point(8, 4.0, True)])
    assert [(flat["fairscale"], flat["ratio"]["fused:cpu"]) for flat in found["flatness"]] == [(False, 3), (True, 4)]
    assert [(place["fairscale"], place["ratio"]) for place in found["replicas"]] == [
        (False, 0.5), (False, 1.5), (True, 0.5), (True, 2.0),
    ]  # fmt: skip


def test_under_a_launcher_its_ranks_count(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="--experts 4 cannot be shared by --ranks 3"):
        figures_of("--ranks", "2", monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ranks", "3"], "--experts 4 cannot be shared by --ranks 3"),
        (["--top-k", "5"], "--top-k 5 is more than the 4 experts"),
        (["--tokens", "0"], "--tokens is"),
        (["--kernels", "grouped", "--hidden", "6"], "--hidden 6: --kernels grouped takes rows of whole 16 bytes"),
        (["--kernels", "auto", "grouped", "--channels", "20", "--dtype", "bf16"], "--channels 20: .* a multiple of 8"),
        (["--kernels", "fast"], "--kernels fast: there are auto, reference"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(options, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        figures_of(*options, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]])
def test_the_verb_starts_its_own_ranks_or_takes_the_launchers(launcher, tmp_path):
    out = tmp_path / "moe.json"
    options = [*SMALL, "--ranks", "2", "--dtype", "fp32", "--no-fairscale", "--json", str(out)]
    command = [sys.executable, *launcher, "-m", "fgmoe_dist.cli", "bench", "moe", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert [(point["ranks"], point["experts"]) for point in figures["points"]] == [(2, 4), (2, 8)]
    assert done.stdout.count("times the dense bound") == 1
