"""Kinds of experts against their formulas, torch's FLOP counter, and each other's ways to hold several."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.backends import create_routed_experts
from fgmoe_dist.experts.backends.fused import FusedExperts
from fgmoe_dist.experts.bank import GlobalExperts, SharedExperts
from fgmoe_dist.experts.kinds import KINDS
from tests.experts.oracle import EXPERT

C, H, ROWS = 6, 4, 5
LINE = (1, ROWS)  # the grid of kinds that read neighbours


def weights_of(name: str, experts: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(experts)
    shapes = KINDS[name].shapes(C, H).values()
    return [torch.randn(experts, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", KINDS)
def test_an_expert_is_its_formula_however_its_rows_come(name):
    kind, x_NC = KINDS[name].on(LINE), torch.randn(ROWS, C, dtype=torch.float64)
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
    kind, x_NC = KINDS[name].on(LINE), torch.randn(ROWS, C)
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
    kind, tasks, count = KINDS[name].on(LINE), 2, 3
    shared = SharedExperts(kind, tasks, C, H, count, "id").double()
    stacks = weights_of(name, tasks * count)
    x_TNC, gate_TNS = torch.randn(tasks, ROWS, C, dtype=torch.float64), torch.rand(tasks, ROWS, count).double()
    with torch.no_grad():
        for t in range(tasks):
            for s in range(count):
                fill(shared, name, t, s, [stack[t * count + s] for stack in stacks])
    for t, y_NC in enumerate(shared(x_TNC, gate_TNS if gated else None)):
        each = [EXPERT[name](x_TNC[t], *(stack[t * count + s] for stack in stacks)) for s in range(count)]
        gates = gate_TNS[t] if gated else torch.ones(ROWS, count).double()
        torch.testing.assert_close(y_NC, sum(gates[:, s, None] * each[s] for s in range(count)))


def fill(shared: SharedExperts, name: str, t: int, s: int, weights: list[torch.Tensor]) -> None:
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
        "conv_lora": {
            "w_in_TDR": (t, slice(None), units),
            "b_in_TR": (t, units),
            "w_out_TRC": (t, units),
            "b_out_TSC": (t, s),
        },
    }[{"rank_one": "lora"}.get(name, name)]
    assert set(parameters) == set(places), "the names that checkpoints use"
    for (weight, place), value in zip(places.items(), weights):
        parameters[weight][place] = value


def test_the_names_of_global_experts():
    names = {name: [p for p, _ in GlobalExperts(KINDS[name], 2, C, H, 2, "id").named_parameters()] for name in KINDS}
    gates = ["gate_TCG", "gate_bias_TG"]
    assert names["ffn"] == ["w_in_GCH", "b_in_GH", "w_out_GHC", "b_out_GC", *gates]
    assert names["lora"] == names["rank_one"] == ["a_GCR", "b_GRC", *gates]
    assert names["conv_lora"] == ["w_in_GDR", "b_in_GR", "w_out_GRC", "b_out_GC", *gates]


# Low-rank convolutions and pairs of vectors in a block's bank


GRID = (3, 4)


def layer_of(**settings) -> FusedExperts:
    """Of two tasks, on images of GRID, with weights of any size."""
    config = build_config({"experts": {"count": 2, "split": 3, "hidden": 3, "top_k": 2, **settings}}).experts
    layer = create_routed_experts(2, C, config, 1, 0, 5, GRID).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return layer


def answer_of(layer: FusedExperts, x_TNC: torch.Tensor, images: int) -> tuple:
    journey = layer.dispatch(x_TNC, images)
    layer.compute(journey)
    return layer.combine(journey), journey.routing


@pytest.mark.parametrize("bank", ["task", "shared"])
def test_low_rank_convolutions_are_routed_by_image(bank):
    layer, images = layer_of(kind="conv_lora", router="image", bank=bank), 3
    x_TNC = torch.randn(2, images * 12, C, dtype=torch.float64, requires_grad=True)
    y_TNC, routing = answer_of(layer, x_TNC, images)
    expected = torch.zeros_like(y_TNC)
    for t in range(2):
        for image in range(images):
            rows = slice(12 * image, 12 * image + 12)
            for e, gate in zip(routing.expert_TNK[t, 12 * image].tolist(), routing.weight_TNK[t, 12 * image]):
                place = e if bank == "shared" else 6 * t + e
                weights = (weight[place] for weight in layer.bank.weights)
                expected[t, rows] += gate * EXPERT["conv_lora"](x_TNC[t, rows], *weights, grid_hw=GRID)
    torch.testing.assert_close(y_TNC, expected)
    wanted = [x_TNC, *layer.parameters()]
    mine, theirs = (torch.autograd.grad(y.square().sum(), wanted, retain_graph=True) for y in (y_TNC, expected))
    for ours, truth in zip(mine, theirs):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("kernel", ["reference", "wide"])
@pytest.mark.parametrize(("bank", "top_k"), [("task", 2), ("shared", 6)])
def test_pairs_of_vectors_are_t_rex(bank, top_k, kernel):
    """y = sum_ij W_ij b_j (a_i . x)."""
    layer = layer_of(kind="rank_one", bank=bank, top_k=top_k, kernel=kernel)
    x_TNC = torch.randn(2, 7, C, dtype=torch.float64)
    y_TNC, routing = answer_of(layer, x_TNC, 1)
    a_QC, b_OJC = layer.bank.a_QC, layer.bank.b_OJC
    banks = 1 if bank == "shared" else 2
    assert a_QC.shape == (2 * banks, C) and b_OJC.shape == (banks, 3, C), "N + m vectors, not N m"
    for t in range(2):
        owner = 0 if bank == "shared" else t
        for n in range(7):
            truth = torch.zeros(C).double()
            for e, gate in zip(routing.expert_TNK[t, n].tolist(), routing.weight_TNK[t, n]):
                i, j = divmod(e, 3)
                truth = truth + gate * b_OJC[owner, j] * (a_QC[2 * owner + i] @ x_TNC[t, n])
            torch.testing.assert_close(y_TNC[t, n], truth)
    assert [(e.task, e.expert, e.index) for e in layer.logical_experts()] == (
        [(None, 0, 0), (None, 1, 1)] if bank == "shared" else [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]
    )


@pytest.mark.parametrize(
    ("experts", "line"),
    [
        ({"kind": "conv_lora"}, "experts.router=token: experts.kind=conv_lora reads a token's neighbours"),
        ({"kind": "conv_lora", "router": "image", "capacity_factor": 1.0}, "conv_lora takes images whole; set it to 0"),
        ({"kind": "rank_one"}, "of rank 1; set experts.hidden=256 to experts.split=4"),
        ({"kind": "rank_one", "hidden": 4, "backend": "fairscale"}, "kind=rank_one needs experts.backend=fused"),
        ({"kind": "conv_lora", "router": "image", "kernel": "cpu"}, "experts.kernel=cpu computes no conv_lora experts"),
    ],
)
def test_what_kinds_cannot_do_is_one_line(experts, line):
    with pytest.raises(UserError) as caught:
        build_config({"experts": experts})
    assert line in str(caught.value)
    with pytest.raises(
        UserError, match="ep_size=2 does not divide experts.count=3, the vectors that experts.kind=rank"
    ):
        build_config({
            "experts": {"kind": "rank_one", "hidden": 4, "count": 3, "split": 4}, "parallel": {"ep_size": 2}
        })  # fmt: skip
