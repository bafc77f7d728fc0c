"""The kernel `wide` against the oracle, and when `auto` takes it."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.experts.kernels import automatic, find_kernel, widths_of
from fgmoe_dist.experts.kernels.fitness import Place
from fgmoe_dist.experts.kinds.lora import LoRAWeights

M, C, K, E, R = 9, 6, 3, 5, 2


@pytest.mark.parametrize("rows", [M, 0])
def test_it_computes_what_the_reference_does(rows):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x_MC, weight_MK, bank = rand(rows, C), rand(rows, K), LoRAWeights(rand(E, C, R), rand(E, R, C))
    expert_MK = torch.stack([torch.randperm(E + 1, generator=generator)[:K] - 1 for _ in range(M)])[:rows].int()
    found = []
    for name in ("wide", "reference"):
        y_MC = find_kernel("lora", name)(x_MC, weight_MK, expert_MK, bank)
        found.append([y_MC, *torch.autograd.grad(y_MC.square().sum(), [x_MC, weight_MK, *bank])])
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs)


def test_auto_takes_it_while_the_experts_are_few_and_narrow():
    for experts, rank, wanted in ((16, 4, "wide"), (64, 1, "wide"), (16, 64, "reference")):
        assert automatic("lora", Place("cpu", "fp32", widths_of(256, rank), experts)) == wanted
    assert automatic("rank_one", Place("cuda", "bf16", widths_of(256, 1), 32)) == "wide"
    assert automatic("lora", Place("cpu", "fp64", widths_of(256, 4), 16)) == "reference"
