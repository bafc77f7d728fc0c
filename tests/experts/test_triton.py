"""The Triton kernel against the float64 loop: compiled where there is a GPU, otherwise in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.kernels import choose_kernel, find_kernel
from fgmoe_dist.experts.kinds.ffn import FFNWeights
from tests.experts.oracle import fine_expert

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, by whomever
pytest.importorskip("triton")

MODULE = "fgmoe_dist.experts.kernels.triton"
NAMES = ("x", "weight", "w_in", "b_in", "w_out", "b_out")


def fused(*arguments):
    from fgmoe_dist.experts.kernels.triton import fused

    return fused(*arguments)


def problem(m, c, k, e, h, dtype=torch.float32, device=DEVICE):
    """[x, gates, *bank] as leaves, and distinct experts of every row."""
    generator = torch.Generator().manual_seed(m + c + h)

    def rand(*shape, scale=1.0, dtype=dtype):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device).requires_grad_()

    leaves = [rand(m, c), rand(m, k, dtype=torch.float32)]
    leaves += [rand(e, c, h, scale=c**-0.5), rand(e, h), rand(e, h, c, scale=h**-0.5), rand(e, c)]
    expert_MK = torch.stack([torch.randperm(e, generator=generator)[:k] for _ in range(m)]) if m else torch.empty(0, k)
    return leaves, expert_MK.long().to(device)


def loop(leaves, expert_MK):
    """y_MC in float64, a token and a slot at a time."""
    x_MC, weight_MK, *bank = leaves
    rows = [torch.zeros_like(x_C) + 0 * x_C for x_C in x_MC]
    for m, experts in enumerate(expert_MK.tolist()):
        for k, e in enumerate(experts):
            if e >= 0:
                rows[m] = rows[m] + weight_MK[m, k] * fine_expert(x_MC[m], *(stack[e] for stack in bank))
    return torch.stack(rows) if rows else x_MC * 1.0


def compare(leaves, expert_MK, tolerance):
    """Outputs and all gradients, relative to the largest of each kind, against the loop over the same numbers."""
    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    y, truth = fused(*leaves[:2], expert_MK, FFNWeights(*leaves[2:])), loop(exact, expert_MK)
    assert y.dtype == leaves[0].dtype
    direction = torch.randn(truth.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    y.backward(direction.to(y.device))
    truth.backward(direction.double())
    pairs = [("y", y, truth)] + [(name, mine.grad, theirs.grad) for name, mine, theirs in zip(NAMES, leaves, exact)]
    for name, mine, theirs in pairs:
        assert mine is not None, f"{name}: a parameter without a gradient leaves other ranks waiting"
        theirs = torch.zeros_like(mine, dtype=torch.float64, device="cpu") if theirs is None else theirs
        error = (mine.detach().cpu().double() - theirs).abs().max().item() if mine.numel() else 0.0
        largest = theirs.abs().max().item() if mine.numel() else 0.0
        assert error <= tolerance * max(largest, 1e-30), f"{name}: off by {error} where the largest is {largest}"


SHAPES = {
    "tiny": (9, 8, 3, 5, 8),
    "hidden 32": (12, 48, 2, 6, 32),
    "hidden 48, channels beyond one block": (10, 80, 2, 3, 48),
    "hidden 64, more rows than a tile": (30, 16, 2, 2, 64),
    "hidden 512": (4, 32, 1, 2, 512),
    "one expert": (20, 16, 1, 1, 32),
    "more experts than rows": (2, 16, 3, 12, 16),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_the_loop(shape):
    compare(*problem(*SHAPES[shape]), tolerance=1e-6)


@pytest.mark.parametrize("case", ["empty slots", "all to one expert", "no slot filled", "no rows"])
def test_uneven_rows(case):
    leaves, expert_MK = problem(0 if case == "no rows" else 40, 16, 3, 5, 32)
    if case == "empty slots":
        expert_MK[::2, 1] = -1
        expert_MK[3] = -1
    elif case == "all to one expert":  # 40 rows in tiles of 32, none for the others
        expert_MK[:] = -1
        expert_MK[:, 0] = 2
    elif case == "no slot filled":
        expert_MK[:] = -1
    compare(leaves, expert_MK.to(torch.int32), tolerance=1e-6)


@pytest.mark.parametrize("bank_dtype", [torch.bfloat16, torch.float32])
def test_bf16_is_the_loop_over_the_same_numbers_but_for_rounding(bank_dtype):
    leaves, expert_MK = problem(12, 48, 2, 3, 32, dtype=torch.bfloat16)
    leaves[2:] = [stack.detach().to(bank_dtype).requires_grad_() for stack in leaves[2:]]
    compare(leaves, expert_MK, tolerance=0.04)  # a bf16 number has 8 bits, and the interpreter cuts off what is beyond
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32] + [bank_dtype] * 4


def test_strided_rows_and_gradients():
    leaves, expert_MK = problem(6, 16, 2, 2, 16)
    x, weight, *bank = leaves
    y = fused(x, weight, expert_MK, FFNWeights(*bank))
    (again,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    wide = torch.stack([x, x], dim=2).detach()[..., 0]
    assert not wide.is_contiguous()
    assert fused(wide, weight, expert_MK.T.contiguous().T, FFNWeights(*bank)).equal(y)
    assert torch.autograd.grad(y.sum(), x)[0].equal(again)  # an expanded gradient has strides of 0


def test_the_same_bits_each_time_with_and_without_gradients():
    leaves, expert_MK = problem(9, 16, 2, 3, 32)

    def once():
        y = fused(*leaves[:2], expert_MK, FFNWeights(*leaves[2:]))
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

    first, second = once(), once()
    assert all(a.equal(b) for a, b in zip(first, second))
    with torch.no_grad():
        assert fused(*leaves[:2], expert_MK, FFNWeights(*leaves[2:])).equal(first[0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=60).map(lambda slots: torch.tensor(slots, device=DEVICE)))
def test_tiles_hold_every_filled_slot_once_and_rows_of_one_expert_only(slots):
    from fgmoe_dist.experts.kernels.triton import _Plan

    plan = _Plan.of(slots[:, None], experts=6)
    starts, found = plan.start_E.tolist(), []
    for expert, first in zip(plan.expert_T.tolist(), plan.first_T.tolist()):
        if expert >= 0:
            rows = plan.order_S[first : min(first + plan.block, starts[expert + 1])].tolist()
            assert rows and {slots[row].item() for row in rows} == {expert}
            found += rows
    assert sorted(found) == [i for i, expert in enumerate(slots.tolist()) if expert >= 0]


def test_a_cpu_is_refused_in_one_line(monkeypatch):
    from fgmoe_dist.experts.kernels import triton

    leaves, _ = problem(2, 16, 1, 2, 16, device="cpu")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    with pytest.raises(UserError, match="experts.kernel=triton needs a CUDA device, .* on cpu; .* experts.kernel=auto"):
        choose_kernel("ffn", "triton", leaves[0], FFNWeights(*leaves[2:]))


def test_without_triton_one_line_and_nothing_else_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(UserError, match="experts.kernel=triton needs the package triton"):
        __import__(MODULE)


# Types of the arguments of each kernel as a bf16 training step passes them; F stands for bf16.
_PLAN = dict(tile_expert="*i32", tile_first="*i32", start="*i32", order="*i64", slots_a_token="i32", depth="i32")
_COMPILED = {
    "_first_layer": (dict.fromkeys(("x", "w_in", "b_in", "before", "hidden"), "F"), dict(KEEP=True)),
    "_second_layer": (
        dict.fromkeys(("a", "w", "b_out", "out"), "F") | dict(weight="*fp32", stride_d="i32", stride_n="i32"),
        dict(GATED=True),
    ),
    "_hidden_gradient": (
        dict.fromkeys(("dy", "w_out", "b_out", "before", "dbefore", "hidden"), "F")
        | dict(weight="*fp32", dweight="*fp32"),
        {},
    ),
    "_weight_gradient": (
        dict.fromkeys(("a", "b", "dw", "db"), "F") | dict(weight="*fp32", height="i32"),
        dict(FIRST=False),
    ),
}


def compile_for(capability: int, element: str) -> None:
    """Compiles the largest choice of every kernel down to machine code, which takes no GPU, and checks it fits one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fgmoe_dist.experts.kernels import triton as kernels

    for name, (types, flags) in _COMPILED.items():
        tuner = getattr(kernels, name)
        choice = tuner.configs[-1]
        constants = dict(PRECISION="ieee", BLOCK_R=64, **flags, **choice.kwargs)
        types = {**_PLAN, "width": "i32", **types}
        signature = {
            argument: "constexpr" if argument in constants else types[argument].replace("F", f"*{element}")
            for argument in tuner.fn.arg_names
        }
        compiled = triton.compile(
            ASTSource(tuner.fn, signature, constants),
            target=GPUTarget("cuda", capability, 32),
            options=dict(num_warps=choice.num_warps, num_stages=choice.num_stages),
        )
        shared = compiled.metadata.shared
        assert compiled.asm["cubin"] and shared <= {80: 163, 90: 227}[capability] * 1024, (name, shared)


@pytest.mark.slow
@pytest.mark.parametrize("capability, element", [(80, "bf16"), (90, "bf16"), (90, "fp32")])
def test_compiles_for_gpus(capability, element):
    line = f"from tests.experts.test_triton import compile_for; compile_for({capability}, {element!r})"
    done = subprocess.run(
        [sys.executable, "-c", line], env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("hidden", [32, 64, 512])
def test_on_a_gpu_as_the_reference_in_double_precision(hidden, dtype, tolerance):
    leaves, expert_MK = problem(3000, 256, 4, 16, hidden, dtype=dtype)
    expert_MK[::7, 2] = -1
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = fused(*leaves[:2], expert_MK, FFNWeights(*leaves[2:]))
    truth = find_kernel("ffn", "reference")(*exact[:2], expert_MK, FFNWeights(*exact[2:]))
    direction = torch.randn_like(y)
    y.backward(direction)
    truth.backward(direction.double())
    for name, mine, theirs in zip(("y", *NAMES), (y, *(m.grad for m in leaves)), (truth, *(t.grad for t in exact))):
        assert (mine.double() - theirs).abs().max() <= tolerance * theirs.abs().max(), name


@pytest.mark.gpu
def test_on_a_gpu_without_waiting_for_it():
    leaves, expert_MK = problem(200, 64, 2, 8, 64)
    for mode in ("default", "error"):  # the first time tunes, which measures and so waits
        torch.cuda.set_sync_debug_mode(mode)
        try:
            fused(*leaves[:2], expert_MK, FFNWeights(*leaves[2:])).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
