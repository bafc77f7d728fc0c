"""Seconds of a step by hand, on a machine with round numbers."""

from __future__ import annotations

import math

import pytest

from fgmoe_dist.planning.counts import Work
from fgmoe_dist.planning.placement import Placement
from fgmoe_dist.planning.profile import Link, Links
from fgmoe_dist.planning.times import predict, total
from fgmoe_dist.planning.traffic import row_bytes
from tests.planning.machines import flat_compute, machine
from tests.planning.test_memory import counts, tiny

WORK = (
    Work("encoder", False, "matmul", "fp32", 64, 3e12, 10),
    Work("decoder", False, "conv3x3", "fp32", 64, 1e12, 1),
    Work("block", False, "layer_norm", "fp32", 1, 2e9, 1),
    Work("shared", False, "matmul", "fp32", 16, 4e12, 2),
    Work("global", False, "matmul", "fp32", 16, 5e12, 2),
    Work("losses", False, "stream", "fp32", 1, 1e10, 4),
    Work("decoder", True, "matmul", "fp32", 64, 20e12, 8),
)


def parts(config, placement, of=None, **options):
    found = predict(config, counts(work=WORK), placement, of or machine(), **options)
    return {(part.name, part.stage): part.seconds for part in found}


def test_dense_work_is_amount_over_rate_once_a_micro_batch():
    found = parts(tiny(train={"batch_size": 3}), Placement(1, 1, 1))
    assert found["encoder", "encoder"] == pytest.approx(3 * 3)
    assert found["decoder", "forward"] == pytest.approx(3 * (1 + 2 + 4 + 5))
    assert found["losses", "forward"] == pytest.approx(3 * 1)
    assert found["decoder", "backward"] == pytest.approx(3 * 20)
    assert ("exchange", "forward") not in found


def test_every_operation_costs_its_overhead():
    slow = machine(compute={1: flat_compute(overhead_s=0.1)})
    found = parts(tiny(train={"batch_size": 1}), Placement(1, 1, 1), slow)
    assert found["encoder", "encoder"] == pytest.approx(3 + 10 * 0.1)


def test_routed_experts_by_hand():
    found = parts(tiny(train={"batch_size": 1}), Placement(1, 1, 1))
    slots, scores, blocks = 2 * 6 * 2, 2 * 6 * 4, 2
    experts, router = slots * 4 * 8 * 4 / 1e12, 2 * scores * 8 / 1e12 + 3 * scores / 1e9
    assert found["routed experts", "forward"] == pytest.approx(blocks * (experts + router))
    assert found["routed experts", "backward"] == pytest.approx(blocks * (2 * experts + 2 * router))
    assert parts(tiny(train={"batch_size": 1}), Placement(1, 1, 1), imbalance=3.0) == found, "there is no other rank"
    busy = parts(tiny(parallel={"ep_size": 4}), Placement(1, 4, 4), imbalance=3.0)
    assert busy["routed experts", "forward"] == pytest.approx(blocks * (3 * experts + router))


def test_shared_banks_and_low_rank_experts_do_the_same_products():
    """Ranks and hidden sizes are the same number here; an expert of a shared bank has the rows of all tasks."""
    of_each = parts(tiny(train={"batch_size": 1}), Placement(1, 1, 1))
    for changes in ({"bank": "shared"}, {"kind": "lora"}):
        assert parts(tiny(train={"batch_size": 1}, experts=changes), Placement(1, 1, 1)) == of_each


def exchange_by_hand(placement, near, far, cover_forward, cover_backward):
    """Forward and backward seconds of two blocks, of links given as (latency, bytes a second)."""
    config, rows = tiny(), 12 * (1 - math.comb(4 - 4 // placement.ep_size, 2) / math.comb(4, 2))

    def wire(size):
        return max(
            peers * (latency + size / rate)
            for peers, (latency, rate) in ((placement.near_peers, near), (placement.far_peers, far))
        )

    sizes = row_bytes(config)
    copies = {name: 6 * rows * placement.ep_size * size / 1e10 for name, size in sizes.items()}
    uncovered = {name: max(0.0, wire(rows * size)) + copies[name] for name, size in sizes.items()}
    covers = dict(zip(("out", "back", "back_gradient", "out_gradient"), (*cover_forward, *cover_backward)))
    seconds = {name: max(0.0, wire(rows * sizes[name]) - covers[name]) + copies[name] for name in uncovered}
    return (
        2 * (wire(8) + seconds["out"] + seconds["back"]),
        2 * (seconds["back_gradient"] + seconds["out_gradient"]),
    )


@pytest.mark.parametrize("placement", [Placement(1, 4, 4), Placement(4, 1, 4), Placement(2, 2, 4), Placement(1, 4, 2)])
def test_an_exchange_takes_its_slower_link(placement):
    alone = tuple(work for work in WORK if work.part not in ("shared", "global"))
    found = predict(tiny(parallel={"ep_size": placement.ep_size}), counts(work=alone), placement, machine())
    forward, backward = exchange_by_hand(placement, (1e-3, 1e9), (1e-2, 1e8), (0, 0), (0, 0))
    assert total(found, name="exchange", stage="forward") == pytest.approx(forward)
    assert total(found, name="exchange", stage="backward") == pytest.approx(backward)


def test_computation_covers_an_exchange_as_far_as_it_overlaps():
    placement, config = Placement(1, 4, 4), tiny(parallel={"ep_size": 4})
    slow = (1.0, 1e9)  # a second a message: 3 s an exchange
    for overlap in (0.0, 0.25, 1.0):
        link = Link(*slow)
        found = parts(config, placement, machine(links={4: Links(link, link, overlap)}))
        cover = (overlap * 4 / 2, overlap * 5 / 2)  # shared, global; a block
        expected = exchange_by_hand(placement, slow, (0, 1e9), cover, (2 * cover[1], 2 * cover[0]))
        assert (found["exchange", "forward"], found["exchange", "backward"]) == pytest.approx(expected)


def test_reductions_by_hand():
    placement = Placement(2, 2, 2)
    found = parts(tiny(parallel={"ep_size": 2, "zero_stage": 1}), placement)
    dense, experts = 4 * 101, 4 * 32
    # Both links work at once, and the one between nodes is the slower: a half of what is left of a node's share.
    gather = (1e-2 + dense / 2 / 2 / 1e8) + (1e-2 + experts / 2 / 1e8)
    copies, small = 4 * (dense + experts) / 1e10, 1e-2 + 4 / 2 / 2 / 1e8
    assert found["reductions", "backward"] == pytest.approx(2 * gather + copies)
    assert found["reductions", "update"] == pytest.approx(gather + 6 * small)
    assert found["reductions", "forward"] == pytest.approx(2 * small)
    every = parts(tiny(train={"batch_size": 12}, parallel={"ep_size": 2, "zero_stage": 2}), placement)
    assert every["reductions", "backward"] == pytest.approx(3 * (2 * gather + copies))
    none = parts(tiny(parallel={"ep_size": 2, "zero_stage": 0}), placement)
    assert none["reductions", "update"] == pytest.approx(6 * small)


def test_the_optimiser_updates_what_a_rank_owns():
    config = tiny(parallel={"ep_size": 2, "zero_stage": 1})
    assert parts(config, Placement(1, 4, 2))["optimiser", "update"] == pytest.approx(
        (101 / 4 + 32 / 2) * (1 / 1e9 + 16 / 1e10)
    )
    plain = tiny(parallel={"ep_size": 2, "zero_stage": 0})
    assert parts(plain, Placement(1, 4, 2))["optimiser", "update"] == pytest.approx((101 + 32) * (1 / 1e9 + 16 / 1e10))


def test_data_is_waited_for_as_far_as_loaders_do_not_keep_up():
    slow = machine(pixels_per_s=1.0)  # 96 pixels an image
    own = parts(tiny(train={"batch_size": 1}, data={"workers": 0}), Placement(1, 1, 1), slow)
    assert own["data", "data"] == pytest.approx(96)
    others = sum(own.values()) - 96
    loaders = parts(tiny(train={"batch_size": 1}, data={"workers": 2}), Placement(1, 1, 1), slow)
    assert loaders["data", "data"] == pytest.approx(48 - others)
    fast = parts(tiny(train={"batch_size": 1}, data={"workers": 2}), Placement(1, 1, 1))
    assert fast["data", "data"] == 0


def test_checkpointing_computes_blocks_twice():
    placement = Placement(1, 4, 4)
    plain, again = (
        parts(tiny(parallel={"ep_size": 4}, train={"activation_checkpointing": on}), placement) for on in (False, True)
    )
    assert again["decoder", "backward"] == pytest.approx(plain["decoder", "backward"] + 2 + 4 + 5)
    for name in ("routed experts", "exchange"):
        both = plain[name, "forward"] + plain[name, "backward"]
        assert again[name, "backward"] == pytest.approx(both)
