"""Candidates, the choice among them, and what is said where none is possible."""

from __future__ import annotations

import time

import pytest

from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.search import ep_sizes, make_plan
from tests.planning.machines import flat_compute, machine
from tests.runs import ROOT

COUNTS = Counts(
    encoder_parameters=1000, dense_parameters=10_000, expert_parameters=16 * 10**6, tokens=64,
    saved_bytes=1e6, block_saved_bytes=1e5, largest_bytes=1e4, work=(),
)  # fmt: skip


def configuration(world=1, experts=None, parallel=None, **train):
    train = {"micro_batch_size": 1, "batch_size": world, **train}
    data = {"image_size": [32, 32]}  # 64 tokens a task
    return build_config({"data": data, "train": train, "experts": experts or {}, "parallel": parallel or {}})


def plan(nodes, gpus, ep_size=None, machine=None, config=None, **options):
    config = config or configuration(nodes * gpus)
    return make_plan(config, lambda _: COUNTS, nodes, gpus, ep_size, machine, **options)


def test_candidates_divide_ranks_and_experts():
    config = configuration(24, {"count": 3, "split": 4, "hidden": 64})  # 12 experts per task
    assert ep_sizes(config, 4, 6) == ([1, 2, 3, 4, 6, 12], {})


def test_what_the_settings_forbid_is_left_out_and_why():
    possible, left_out = ep_sizes(configuration(8, {"groups": 4}), 1, 8)  # of 16 experts per task
    assert possible == [1, 2, 4] and "experts.groups=4 is not a multiple of parallel.ep_size=8" in left_out[8]
    found = plan(1, 8, config=configuration(8, {"max_ranks_per_token": 1, "top_k": 4}))
    assert [one.ep_size for one in found.candidates] == [1, 2, 4] and list(found.left_out) == [8]
    assert "leaves a token 2 of the 16 routed experts" in found.left_out[8]


@pytest.mark.parametrize("limit", [{"max_ranks_per_token": 2, "top_k": 2}, {"device_balance_weight": 0.05}])
def test_groups_are_the_ranks_of_each_candidate(limit):
    assert [one.ep_size for one in plan(1, 4, config=configuration(4, limit)).candidates] == [1, 2, 4]


def test_the_one_asked_for_is_one_that_was_asked_for():
    assert plan(1, 1).why == "the only one possible"
    assert plan(1, 1, ep_size=1).why == plan(1, 4, ep_size=2).why == "the one asked for"


def test_memory_of_the_routed_experts_falls_as_1_over_ep_size():
    config = configuration(16, parallel={"zero_stage": 0})
    found = {one.ep_size: one.memory for one in plan(2, 8, config=config).candidates}
    dense = COUNTS.dense_parameters
    for ep_size, memory in found.items():
        assert memory["moments"] == 8 * (dense + 16e6 / ep_size)
        assert memory["parameters"] == memory["gradients"] == 4 * (dense + 16e6 / ep_size)


def test_zero_divides_moments_by_the_copies_whatever_ep_size():
    for one in plan(2, 8, config=configuration(16)).candidates:
        assert one.memory["moments"] == pytest.approx(8 * (10_000 + 16e6) / 16, rel=1e-4)


def test_the_fastest_that_fits_is_chosen():
    small = machine(memory_bytes=2 * 10**8)
    config = configuration(8, parallel={"zero_stage": 0})
    free = plan(1, 8, machine=machine(memory_bytes=10**12), config=config)
    assert all(one.fits for one in free.candidates) and "of the" not in free.why
    tight = plan(1, 8, machine=small, config=config)
    fitting = [one for one in tight.candidates if one.fits]
    assert 0 < len(fitting) < len(tight.candidates) and tight.chosen in fitting
    assert tight.chosen.seconds == pytest.approx(min(one.seconds for one in fitting), rel=0.02)
    assert f"of the {len(fitting)} of 4 that fit" in tight.why


def test_few_tokens_travel_to_large_experts_and_large_experts_are_copied_for_many_tokens():
    assert plan(4, 4, machine=machine()).chosen.ep_size > 1
    config = build_config({"train": {"batch_size": 16, "micro_batch_size": 1}, "data": {"image_size": [448, 576]}})
    assert plan(4, 4, machine=machine(), config=config).chosen.ep_size == 1


def test_without_a_machine_the_least_traffic_is_chosen():
    without = plan(4, 4)
    assert without.limit_bytes is None and without.chosen.seconds is None and "--machine" in without.why
    far = {one.ep_size: sum(sent.far for sent in one.traffic) for one in without.candidates}
    assert far[without.chosen.ep_size] == min(far.values())


def test_thousands_of_gpus_take_no_time():
    start = time.process_time()
    found = plan(1024, 8, machine=machine(), config=configuration(8192, {"count": 64, "split": 16, "hidden": 1024}))
    assert [one.ep_size for one in found.candidates] == [2**n for n in range(11)]
    assert time.process_time() - start < 5


def test_more_imbalance_is_never_cheaper():
    even, uneven = (plan(1, 4, 4, machine(), imbalance=x).chosen for x in (1.0, 3.0))
    assert uneven.seconds > even.seconds and uneven.memory_bytes > even.memory_bytes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(nodes=0, gpus=1, config=configuration(1)), "--nodes 0: must be 1 or more"),
        (dict(nodes=1, gpus=-1, config=configuration(1)), "--gpus-per-node -1"),
        (dict(nodes=1, gpus=4, ep_size=3), "--ep-size 3: must divide the 4 ranks and the 16 routed experts per task"),
        (dict(nodes=1, gpus=4, ep_size=32), "possible: 1, 2, 4$"),
        (dict(nodes=1, gpus=3, config=configuration(4)), "train.batch_size=4 is not a multiple"),
        (dict(nodes=1, gpus=1, config=configuration(1, {"backend": "deepspeed"})), "--set experts.backend=fused"),
        (dict(nodes=2, gpus=2, machine=machine(internode=None)), "--internode-gbps"),
        (dict(nodes=1, gpus=2, machine=machine(links={})), "one rank per node"),
        (dict(nodes=1, gpus=2, memory_bytes=1e6), "no ep_size fits into 0.00 GiB per rank: the least, ep_size="),
        (dict(nodes=1, gpus=4, ep_size=4, config=configuration(4, {"groups": 2})), "--ep-size 4: experts.groups=2"),
    ],
)
def test_mistakes_are_told_in_one_line_with_the_cure(arguments, told):
    with pytest.raises(UserError, match=told) as raised:
        plan(**arguments)
    assert "\n" not in str(raised.value)


def test_what_is_advised_where_nothing_fits_does_fit():
    """By the plan's own arithmetic: a limit at which one change and no cheaper one is enough."""

    def advised(limit, config):
        with pytest.raises(UserError, match="no ep_size fits") as raised:
            plan(1, 1, config=config, memory_bytes=limit)
        return str(raised.value).partition("; ")[2]

    def needed(config):
        return plan(1, 1, config=config).chosen.memory_bytes

    first = needed(configuration(4, micro_batch_size=4))
    plain = needed(configuration(4, micro_batch_size=4, parallel={"zero_stage": 0}))
    assert plain < first, "alone, ZeRO only costs"
    told = advised(plain, configuration(4, micro_batch_size=4))
    assert told == f"set parallel.zero_stage=0: ep_size=1 then needs {plain / 2**30:.2f} GiB"
    bf16 = configuration(4, micro_batch_size=4, precision="bf16")
    assert "zero_stage=0" not in advised(needed(bf16) - 1, bf16), "which bf16 forbids"
    assert advised(1e5, bf16).startswith("neither ZeRO nor")


def test_a_precision_that_was_not_measured_is_told():
    rates = {"fp32": flat_compute().rates["fp32"]}
    fp32_only = machine(compute={1: type(flat_compute())(1, 0.0, rates)})
    with pytest.raises(UserError, match="was not measured in bf16"):
        plan(1, 1, machine=fp32_only, config=configuration(1, precision="bf16"))


def test_plans_are_plain_arithmetic():
    """Only what runs a model on tensors without data, or draws a batch of it, knows torch."""
    files = {path.stem: path.read_text() for path in (ROOT / "fgmoe_dist" / "planning").glob("*.py")}
    assert {name for name, text in files.items() if "import torch" in text} == {"data_look", "trace"}


def test_mistakes_come_before_counting():
    with pytest.raises(UserError, match="--ep-size 3"):
        make_plan(configuration(4), lambda _: 1 / 0, 1, 4, 3)
