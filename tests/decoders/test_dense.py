"""The dense block: its equation, and its numbers beside FGMoE's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.decoders.dense import DenseBlock
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.settings import Experts
from tests.decoders.tiny import configuration, tiny_decoder

NO_ENCODER = nn.Identity()
BLOCKS = {"blocks": 2}


def counts(kind: str, experts: dict, **settings) -> dict[str, int]:
    return parameter_counts(tiny_decoder(kind, {"experts": experts}, **BLOCKS, **settings), NO_ENCODER, 1)


@pytest.mark.parametrize(
    "experts",
    [
        {},
        {"bank": "shared"},
        {"kind": "lora", "shared": 2},
        {"top_k": 8},
        {"global_experts": 0},
        {"global_input": "tasks"},
    ],
)
def test_it_has_fgmoe_s_active_or_total_size_less_the_routers(experts):
    fgmoe = counts("fgmoe", experts)
    router, blocks = 16 * 8, BLOCKS["blocks"]  # C x N m, of one task in one block
    # A token of one task passes its own, but those of all tasks before a block in which the tasks meet.
    passed = 4 * (blocks - 1) + 1 if experts.get("global_input") == "tasks" else blocks
    assert counts("dense", experts, size="active")["active"] == fgmoe["active"] - passed * router
    assert counts("dense", experts, size="total")["total"] == fgmoe["total"] - 4 * blocks * router
    assert counts("dense", experts)["routed"] == 0


def test_a_block_is_one_wide_mlp_of_each_task_and_the_global_experts():
    experts = Experts(count=2, split=2, hidden=12, top_k=2, shared=1, global_experts=2)
    block = DenseBlock(3, 8, experts, 3, (1, 5), 0, "block", 0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    u_TNC, a_NC = torch.randn(3, 5, 8).double(), torch.randn(5, 8).double()
    mlp, x_TNC = block.mlp, F.layer_norm(u_TNC, (8,), block.norm.weight, block.norm.bias)
    assert mlp.w_in_TCH.shape == (3, 8, 3 * 6)
    expected = u_TNC + block.global_experts(F.layer_norm(a_NC, (8,), block.global_norm.weight, block.global_norm.bias))
    for task in range(3):
        hidden_NH = F.gelu(x_TNC[task] @ mlp.w_in_TCH[task] + mlp.b_in_TH[task])
        expected[task] += hidden_NH @ mlp.w_out_THC[task] + mlp.b_out_TSC[task].sum(0)
    torch.testing.assert_close(block(u_TNC, a_NC), expected)


def test_a_plan_tells_its_numbers():
    ((name, told),) = tiny_decoder("dense").describe()
    numbers = 4 * (2 * 16 * 64 + 64 + 4 * 16)
    assert name == "block" and f"hidden size 64 a task and block, {numbers:,} parameters" in told
    assert "4 fine experts, FGMoE's active number; 2 global" in told


def test_a_bank_that_does_not_divide_among_tasks_is_refused():
    experts = {"bank": "shared", "count": 3, "split": 1, "hidden": 30, "top_k": 2}
    with pytest.raises(UserError, match="decoder.size=total: the 3 routed experts of experts.bank=shared"):
        configuration("dense", {"experts": experts}, size="total")
    assert configuration("dense", {"experts": experts}, size="active")


def test_what_fgmoe_would_refuse_it_refuses():
    with pytest.raises(UserError, match="top_k=9 exceeds the 8"):
        configuration("dense", {"experts": {"top_k": 9}})
    with pytest.raises(UserError, match="decoder.stride=5"):
        configuration("dense", stride=5)
