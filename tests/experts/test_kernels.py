"""Every kernel against the sum it stands for, written as a loop."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fgmoe_dist.experts.kernels
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.kernels import automatic, choose_kernel, explain_kernel, find_kernel, kernel_names
from fgmoe_dist.experts.kernels.cpu import cut
from fgmoe_dist.experts.kernels.fitness import Place
from fgmoe_dist.experts.kinds.ffn import FFNWeights
from tests.experts.oracle import fine_expert

M, C, K, E, H = 9, 8, 3, 5, 8


def problem(dtype, case):
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    expert_MK = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(M)])
    if case == "empty slots":
        expert_MK[::2, 1] = -1
        expert_MK[3] = -1
    if case == "all to one expert":
        expert_MK[:] = -1
        expert_MK[:, 0] = 2
    rows = 0 if case == "no rows" else M
    bank = FFNWeights(rand(E, C, H), rand(E, H), rand(E, H, C), rand(E, C))
    return rand(rows, C), rand(rows, K), expert_MK[:rows], bank


def loop(x_MC, weight_MK, expert_MK, bank):
    rows = []
    for m in range(len(x_MC)):
        y_C = torch.zeros(C, dtype=x_MC.dtype)
        for k in range(K):
            e = int(expert_MK[m, k])
            if e >= 0:
                y_C = y_C + weight_MK[m, k] * fine_expert(x_MC[m], *(stack[e] for stack in bank))
        rows.append(y_C)
    return torch.stack(rows) if rows else x_MC * 1.0


@pytest.mark.parametrize("case", ["full", "empty slots", "all to one expert", "no rows"])
@pytest.mark.parametrize("name", kernel_names("ffn"))
def test_outputs_and_gradients_are_those_of_the_loop(name, case):
    x, weight, expert, bank = problem(torch.float32, case)
    exact = problem(torch.float64, case)
    truth = loop(*exact)
    truth.square().sum().backward() if len(x) else None
    y = find_kernel("ffn", name)(x, weight, expert, bank)
    y.square().sum().backward()
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip([x, weight, *bank], [exact[0], exact[1], *exact[3]]):
        assert mine.grad is not None, "a parameter without a gradient leaves other ranks waiting"
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["full", "empty slots", "all to one expert", "no rows"])
def test_more_experts_than_one_grouped_product_takes(case, monkeypatch):
    monkeypatch.setattr(sys.modules["fgmoe_dist.experts.kernels.grouped"], "MOST_GROUPS", 2)
    test_outputs_and_gradients_are_those_of_the_loop("grouped", case)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gradcheck(name):
    x, weight, expert, bank = problem(torch.float64, "empty slots")

    def function(x, weight, *stacks):
        return find_kernel("ffn", name)(x, weight, expert, FFNWeights(*stacks))

    small = (x[:4].detach().requires_grad_(), weight[:4].detach().requires_grad_())
    expert = expert[:4]
    assert torch.autograd.gradcheck(function, (*small, *bank))


def many_rows(dtype, rows=150, experts=4):
    """Loads that differ, one expert with most rows and one with none."""
    generator = torch.Generator().manual_seed(2)
    chance_E = torch.tensor([6.0, 1.0, 0.3, 0.0])
    expert_MK = torch.multinomial(chance_E.expand(rows, experts), 2, generator=generator)
    shapes = (rows, C), (rows, 2), (experts, C, H), (experts, H), (experts, H, C), (experts, C)
    x, weight, *stacks = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )
    return x, weight, expert_MK, FFNWeights(*stacks)


@pytest.mark.parametrize("threads", [1, 2])
def test_experts_cut_into_pieces_are_whole(threads, monkeypatch):
    """Pieces of at most 16 rows, against the float64 oracle: a weight's gradient is summed over an expert's pieces."""
    monkeypatch.setattr(sys.modules[cut.__module__], "GROUP_BYTES", 16 * C * 8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine, theirs = many_rows(torch.float64), many_rows(torch.float64)
        y, truth = find_kernel("ffn", "cpu")(*mine), find_kernel("ffn", "reference")(*theirs)
        y.square().sum().backward()
        truth.square().sum().backward()
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(y, truth)
    for a, b in zip([*mine[:2], *mine[3]], [*theirs[:2], *theirs[3]]):
        torch.testing.assert_close(a.grad, b.grad)


def test_bf16_of_the_cpu_kernel_is_as_near_as_bf16_can_be():
    """k contributions to a token are added in fp32, so that only inputs, products and the result are rounded."""
    low, exact = many_rows(torch.bfloat16), many_rows(torch.float64)
    y, truth = find_kernel("ffn", "cpu")(*low), find_kernel("ffn", "reference")(*exact)
    weights = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y.backward(weights.bfloat16())
    truth.backward(weights)
    for a, b in zip([y, *(t.grad for t in (*low[:2], *low[3]))], [truth, *(t.grad for t in (*exact[:2], *exact[3]))]):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() <= 0.01 * b.norm()


def test_a_token_that_is_not_finite_stays_among_its_own():
    x, weight, expert, bank = many_rows(torch.float32)
    x = x.detach().index_fill(0, torch.tensor(5), float("nan"))
    y = find_kernel("ffn", "cpu")(x, weight, expert, bank)
    assert y[5].isnan().all() and y[:5].isfinite().all() and y[6:].isfinite().all()


def test_the_cpu_kernel_has_no_second_derivative():
    x, weight, expert, bank = problem(torch.float64, "full")
    (first,) = torch.autograd.grad(
        find_kernel("ffn", "cpu")(x, weight, expert, bank).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@settings(max_examples=60, deadline=None)
@given(
    expert_MK=st.lists(st.lists(st.integers(-1, 6), min_size=3, max_size=3), min_size=0, max_size=60),
    max_rows=st.integers(1, 9),
    group_rows=st.integers(1, 40),
    multiple=st.integers(1, 5),
)
def test_every_slot_is_in_one_piece_of_its_expert(expert_MK, max_rows, group_rows, multiple):
    expert_MK = torch.tensor(expert_MK, dtype=torch.int64).reshape(-1, 3)
    pieces = cut(expert_MK, 7, max_rows, group_rows, multiple)
    flat = expert_MK.flatten()
    filled = (flat >= 0).nonzero()[:, 0].tolist()
    assert sorted(pieces.slot_S[pieces.real_S].tolist()) == filled
    assert pieces.token_S.tolist() == (pieces.slot_S // 3).tolist()
    slot = first = 0
    for group in pieces.groups:
        assert (group.first, group.slots.start) == (first, slot) and group.rows % multiple == 0
        for piece in range(group.first, group.last):
            mine = slice(slot, slot + group.rows)
            assert (flat[pieces.slot_S[mine]] == pieces.expert_P[piece]).all()  # padding repeats a row of its own
            assert 1 <= pieces.real_S[mine].sum() <= max_rows
            slot = mine.stop
        first = group.last
    assert first == len(pieces.expert_P) and slot == len(pieces.slot_S)
    load = torch.bincount(flat + 1, minlength=8)[1:]
    assert pieces.absent.tolist() == (load == 0).nonzero()[:, 0].tolist()
    assert pieces.unsplit == (load.max() <= max_rows)


def test_auto_takes_the_cpu_kernel_on_a_cpu_and_the_oracle_in_float64():
    for dtype, chosen in ((torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float64, "reference")):
        x, _, _, bank = problem(dtype, "full")
        assert choose_kernel("ffn", "auto", x, bank) == chosen
        assert choose_kernel("ffn", "grouped", x, bank) == "grouped"
    x, _, _, bank = problem(torch.float32, "full")
    assert (
        explain_kernel("ffn", "auto", bank) == "experts.kernel auto: cpu for 5 experts of 8 x 8 a rank, float32 on cpu"
    )
    with pytest.raises(UserError, match="experts.kernel=cpu computes on a CPU only, and the experts are on meta"):
        choose_kernel("ffn", "cpu", x.to("meta"), bank)


def test_auto_takes_the_fastest_that_a_gpu_can(monkeypatch):
    def place(precision, hidden):
        return Place("cuda", precision, {"decoder.channels": 16, "experts.hidden": hidden})

    pytest.importorskip("triton")
    assert {automatic("ffn", place(precision, 12)) for precision in ("fp32", "bf16")} == {"triton"}
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "fgmoe_dist.experts.kernels.triton", raising=False)
    monkeypatch.delattr(fgmoe_dist.experts.kernels, "triton", raising=False)
    assert automatic("ffn", place("bf16", 16)) == "grouped"
    assert automatic("ffn", place("bf16", 12)) == "reference"
