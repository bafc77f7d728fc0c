"""Kinds of experts against their formulas, torch's FLOP counter, and each other's ways to hold several."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fgmoe_dist.experts.bank import GlobalExperts, SharedExperts
from fgmoe_dist.experts.kinds import KINDS
from tests.experts.oracle import EXPERT

C, H, ROWS = 6, 4, 5


def weights_of(name: str, experts: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(experts)
    shapes = KINDS[name].shapes(C, H).values()
    return [torch.randn(experts, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", KINDS)
def test_an_expert_is_its_formula_however_its_rows_come(name):
    kind, x_NC = KINDS[name], torch.randn(ROWS, C, dtype=torch.float64)
    stacks = weights_of(name, 3)
    truth = torch.stack([EXPERT[name](x_NC, *(stack[e] for stack in stacks)) for e in range(3)])
    one = [stack[1] for stack in stacks]
    for got, wanted in (
        (kind.forward(x_NC.expand(3, ROWS, C), *stacks), truth),
        (kind.forward(x_NC, *one), truth[1]),
        (kind.forward(x_NC.view(1, ROWS, 1, C), *one), truth[1].view(1, ROWS, 1, C)),
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", KINDS)
def test_shapes_and_flops(name):
    kind, x_NC = KINDS[name], torch.randn(ROWS, C)
    first = kind.initial(C, H, "anything")
    assert {key: tuple(value.shape) for key, value in first.items()} == kind.shapes(C, H)
    assert tuple(first) == kind.weights and {value.dtype for value in first.values()} == {torch.float32}
    with FlopCounterMode(display=False) as counter:
        kind.forward(x_NC, *first.values())
    assert counter.get_total_flops() == ROWS * kind.flops(C, H)


def test_first_weights_are_those_of_the_identity():
    generator = torch.Generator().manual_seed(zlib.crc32(b"(5, 'block', 0, 1, 2)"))
    first = KINDS["ffn"].initial(C, H, 5, "block", 0, 1, 2)
    assert first["w_in_ECH"].equal(torch.empty(C, H).normal_(std=(1 / C) ** 0.5, generator=generator))
    assert first["w_out_EHC"].equal(torch.empty(H, C).normal_(std=0.5 * (1 / H) ** 0.5, generator=generator))
    assert not first["b_in_EH"].any() and not first["b_out_EC"].any()


def test_a_low_rank_expert_adds_nothing_at_first_and_learns_from_b():
    kind, x_NC = KINDS["lora"], torch.randn(ROWS, C)
    first = [value.requires_grad_() for value in kind.initial(C, H, "anything").values()]
    y_NC = kind.forward(x_NC, *first)
    (y_NC - 1).square().sum().backward()
    assert not y_NC.any() and not first[0].grad.any() and first[1].grad.any()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_experts_side_by_side_are_a_sum_over_experts(name, gated):
    """Of each task's shared experts; with weights that were not drawn for them."""
    kind, tasks, count = KINDS[name], 2, 3
    shared = SharedExperts(kind, tasks, C, H, count, "id").double()
    stacks = weights_of(name, tasks * count)
    x_TNC, gate_TNS = torch.randn(tasks, ROWS, C, dtype=torch.float64), torch.rand(tasks, ROWS, count).double()
    with torch.no_grad():
        for t in range(tasks):
            for s in range(count):
                fill(shared, kind, t, s, [stack[t * count + s] for stack in stacks])
    for t, y_NC in enumerate(shared(x_TNC, gate_TNS if gated else None)):
        each = [EXPERT[name](x_TNC[t], *(stack[t * count + s] for stack in stacks)) for s in range(count)]
        gates = gate_TNS[t] if gated else torch.ones(ROWS, count).double()
        torch.testing.assert_close(y_NC, sum(gates[:, s, None] * each[s] for s in range(count)))


def fill(shared: SharedExperts, kind, t: int, s: int, weights: list[torch.Tensor]) -> None:
    units = slice(H * s, H * s + H)
    parameters = dict(shared.named_parameters())
    places = {
        "ffn": {
            "w_in_TCH": (t, slice(None), units),
            "b_in_TH": (t, units),
            "w_out_THC": (t, units),
            "b_out_TSC": (t, s),
        },
        "lora": {"a_TCR": (t, slice(None), units), "b_TRC": (t, units)},
    }[next(name for name, known in KINDS.items() if known is kind)]
    assert set(parameters) == set(places), "the names that checkpoints use"
    for (name, place), weight in zip(places.items(), weights):
        parameters[name][place] = weight


def test_the_names_of_global_experts():
    names = {name: [p for p, _ in GlobalExperts(KINDS[name], 2, C, H, 2, "id").named_parameters()] for name in KINDS}
    gates = ["gate_TCG", "gate_bias_TG"]
    assert names["ffn"] == ["w_in_GCH", "b_in_GH", "w_out_GHC", "b_out_GC", *gates]
    assert names["lora"] == ["a_GCR", "b_GRC", *gates]
