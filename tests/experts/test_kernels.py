"""Every kernel against the sum it stands for, written as a loop."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.experts.kernels import KERNELS, BankWeights
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
    bank = BankWeights(rand(E, C, H), rand(E, H), rand(E, H, C), rand(E, C))
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
@pytest.mark.parametrize("name", KERNELS)
def test_outputs_and_gradients_are_those_of_the_loop(name, case):
    x, weight, expert, bank = problem(torch.float32, case)
    exact = problem(torch.float64, case)
    truth = loop(*exact)
    truth.square().sum().backward() if len(x) else None
    y = KERNELS[name](x, weight, expert, bank)
    y.square().sum().backward()
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip([x, weight, *bank], [exact[0], exact[1], *exact[3]]):
        assert mine.grad is not None, "a parameter without a gradient leaves other ranks waiting"
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad.double(), expected, rtol=1e-5, atol=1e-4)


def test_gradcheck_of_the_reference_kernel():
    x, weight, expert, bank = problem(torch.float64, "empty slots")

    def function(x, weight, *stacks):
        return KERNELS["reference"](x, weight, expert, BankWeights(*stacks))

    small = (x[:4].detach().requires_grad_(), weight[:4].detach().requires_grad_())
    expert = expert[:4]
    assert torch.autograd.gradcheck(function, (*small, *bank))
