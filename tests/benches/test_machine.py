"""The measurements run and say what they should; how long anything took is not asserted."""

from __future__ import annotations

import argparse

import pytest
import torch

from fgmoe_dist.benches import machine as bench_machine
from fgmoe_dist.benches import plan as bench_plan
from fgmoe_dist.benches import step as bench_step
from fgmoe_dist.benches.rates import measure_compute
from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.planning.profile import machine_json, read_machine
from fgmoe_dist.planning.search import make_plan
from fgmoe_dist.planning.trace import count
from tests.planning.machines import ELEMENTWISE, PRODUCTS
from tests.runs import SETTINGS


@pytest.mark.slow
def test_every_kind_of_work_is_measured():
    """Whatever the model counts, in either precision, has a rate."""
    compute = measure_compute(torch.device("cpu"), budget_s=1e-4)
    for kinds in compute.rates.values():
        fixed = {kind for kind in kinds if not kind.startswith("experts")}
        assert fixed == {kind for kind in (*PRODUCTS, *ELEMENTWISE, "stream") if not kind.startswith("experts")}
        assert all(rate > 0 for curve in kinds.values() for _, rate in curve)
        assert all(list(curve) == sorted(curve) for curve in kinds.values())
    config = build_config({**SETTINGS, "train": {**SETTINGS["train"], "precision": "bf16"}})
    for work in count(config).work:
        assert compute.seconds(work.kind, work.precision, work.amount, work.size, work.calls) > 0


@pytest.mark.slow
def test_a_measured_machine_plans_and_steps_are_measured_beside_it(tmp_path):
    machine = bench_machine.profile([1, 2], budget_s=1e-3)
    assert machine.device == "cpu" and machine.memory_bytes > machine.base_bytes > 10**8
    assert set(machine.compute) == {1, 2} and set(machine.links) == {2} and 0 <= machine.links[2].overlap <= 1
    from fgmoe_dist.files import write_json

    write_json(tmp_path / "machine.json", machine_json(machine))
    assert read_machine(tmp_path / "machine.json") == machine
    config = build_config(SETTINGS)
    chosen = make_plan(config, count, 1, 2, machine=machine).chosen
    assert chosen.seconds > 0 and chosen.fits

    (entry,) = bench_step.measure_layouts(config, [(2, 2)], steps=2, synthetic=True, machine=machine)["layouts"]
    measured = entry["measured"]
    assert measured["memory_bytes"] > machine.base_bytes / 2
    # Stages are parts of the step; what is between them is next to nothing, but the clock is not asserted.
    assert all(measured["stages"][stage] > 0 for stage in ("encoder", "forward", "backward", "update"))
    assert sum(measured["stages"].values()) <= measured["seconds"] * 1.5
    assert entry["error"]["seconds"] == pytest.approx(entry["predicted"]["seconds"] / measured["seconds"] - 1)


def test_a_step_of_the_bench_is_one_micro_batch_a_rank():
    config = bench_step.step_config(build_config(SETTINGS), 4, 2)
    assert (config.train.batch_size, config.train.micro_batch_size, config.parallel.ep_size) == (4, 1, 2)


def test_a_step_that_the_configuration_forbids_is_refused():
    limited = {**SETTINGS["experts"], "count": 2, "split": 4, "top_k": 3, "max_ranks_per_token": 1}
    config = build_config({**SETTINGS, "experts": limited})
    assert bench_step.step_config(config, 2, 2).expert_groups == 2
    with pytest.raises(UserError, match="leaves a token 2 of the 8 routed experts"):
        bench_step.step_config(config, 4, 4)


def test_layouts_of_a_step():
    assert bench_step.step_layouts([4, 1, 2], 8) == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4)]
    assert bench_step.step_layouts([2, 4], 8, [1, 4]) == [(2, 1), (4, 1), (4, 4)]
    assert bench_step.step_layouts([3], 8) == [(3, 1)]
    with pytest.raises(UserError, match="--ep-size 3: none divides both the ranks and the 8 routed experts"):
        bench_step.step_layouts([2, 4], 8, [3])


def test_the_verdict_says_what_a_wrong_choice_costs():
    def entry(ranks, ep_size, measured, predicted):
        return {
            "ranks": ranks, "ep_size": ep_size, "measured": {"seconds": measured}, "predicted": {"seconds": predicted},
            "error": {"seconds": predicted / measured - 1, "memory_bytes": 0.5},
        }  # fmt: skip

    found = bench_plan.verdict([entry(1, 1, 1.0, 1.5), entry(2, 1, 2.0, 2.0), entry(2, 2, 1.6, 2.4)])
    assert found["median_error"]["seconds"] == pytest.approx(0.5)
    assert found["worst_error"] == {"seconds": pytest.approx(0.5), "memory_bytes": 0.5}
    assert found["fastest_ep_size"]["2"] == {"measured": 2, "predicted": 1, "loss": pytest.approx(0.25)}
    assert found["fastest_ep_size"]["1"]["loss"] == 0


@pytest.mark.parametrize("case", bench_plan.CASES)
def test_the_cases_are_configurations_that_fit_all_layouts(case):
    config = build_config(bench_plan.CASES[case])
    assert len(bench_step.step_layouts([1, 2, 4], config.experts.routed)) == 5


@pytest.mark.parametrize(("module", "arguments"), [
    (bench_machine, ["--ranks", "0"]), (bench_machine, ["--milliseconds", "0"])])  # fmt: skip
def test_mistakes_are_the_user_s(module, arguments):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    with pytest.raises(UserError, match="must be"):
        module.run(parser.parse_args(arguments))


@pytest.mark.parametrize(("module", "arguments"), [
    (bench_plan, ["--ranks", "-1"]), (bench_step, ["--config", "x", "--steps", "0"]),
    (bench_step, ["--config", "x", "--ep-size", "1", "two"]),
])  # fmt: skip
def test_a_number_that_counts_is_one_at_least(module, arguments, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments)
    assert f"{arguments[-1]!r}: give a whole number, 1 or more" in capsys.readouterr().err
