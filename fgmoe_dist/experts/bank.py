"""Fine experts: MLPs split along their hidden dimension, stacked into one parameter a weight.

Every expert is initialised from a seed of its own, (run seed, block, task, expert), so that any placement over
ranks, and any backend, starts from the same numbers.

Legend: E experts here, C channels, H hidden size of a fine expert, T tasks, S shared experts a task.
"""

from __future__ import annotations

import zlib
from typing import Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.experts.groups import mark_expert_parameter
from fgmoe_dist.experts.kernels import BankWeights

WEIGHTS = BankWeights._fields


def initial_expert(channels: int, hidden: int, *identity: object) -> dict[str, Tensor]:
    """One expert's fp32 weights, a function of `identity` alone. Names and layout as in `BankWeights`, without E."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(identity).encode()))
    return {
        "w_in_ECH": torch.empty(channels, hidden).normal_(std=(1 / channels) ** 0.5, generator=generator),
        "b_in_EH": torch.zeros(hidden),
        # Small at first, so that a block starts near the identity.
        "w_out_EHC": torch.empty(hidden, channels).normal_(std=0.5 * (1 / hidden) ** 0.5, generator=generator),
        "b_out_EC": torch.zeros(channels),
    }


class ExpertBank(nn.Module):
    """The routed experts of a rank, stacked. `identities` names each; parameters are marked as those of experts."""

    def __init__(self, channels: int, hidden: int, identities: Sequence[tuple], ep_size: int):
        super().__init__()
        members = [initial_expert(channels, hidden, *identity) for identity in identities]
        for name in WEIGHTS:
            self.register_parameter(name, nn.Parameter(torch.stack([member[name] for member in members])))
        for parameter in self.parameters():
            mark_expert_parameter(parameter, ep_size)

    @property
    def weights(self) -> BankWeights:
        return BankWeights(*(getattr(self, name) for name in WEIGHTS))


class SharedExperts(nn.Module):
    """S always-on fine experts of each of T tasks, replicated: `y = sum_s g_s FFN_s(x)`, g_s = 1 if ungated.

    Side by side, S fine experts are one MLP of hidden size S*H; a gate scales its share of the hidden units.
    """

    def __init__(self, tasks: int, channels: int, hidden: int, count: int, *identity: object):
        super().__init__()
        self.count = count
        members = [
            [initial_expert(channels, hidden, *identity, "shared", t, s) for s in range(count)] for t in range(tasks)
        ]
        stack = {name: torch.stack([torch.stack([m[name] for m in row]) for row in members]) for name in WEIGHTS}
        self.w_in_TCH = nn.Parameter(stack["w_in_ECH"].transpose(1, 2).flatten(2))
        self.b_in_TH = nn.Parameter(stack["b_in_EH"].flatten(1))
        self.w_out_THC = nn.Parameter(stack["w_out_EHC"].flatten(1, 2))
        self.b_out_TSC = nn.Parameter(stack["b_out_EC"])

    def forward(self, x_TNC: Tensor, gate_TNS: Optional[Tensor]) -> Tensor:
        hidden_TNH = F.gelu(torch.baddbmm(self.b_in_TH[:, None], x_TNC, self.w_in_TCH))
        if gate_TNS is None:
            return torch.baddbmm(self.b_out_TSC.sum(1, keepdim=True), hidden_TNH, self.w_out_THC)
        gate_TNS = gate_TNS.to(x_TNC.dtype)
        hidden_TNH = hidden_TNH * gate_TNS.repeat_interleave(hidden_TNH.shape[2] // self.count, dim=2)
        return torch.bmm(hidden_TNH, self.w_out_THC) + torch.bmm(gate_TNS, self.b_out_TSC)


class GlobalExperts(nn.Module):
    """Experts over the aggregated feature that all tasks share, mixed for each task by feature and task.

    `y_t = sum_g softmax(a w_t + b_t)_g FFN_g(a)`: each FFN runs once for all tasks, so what one task teaches it
    the others can use; the mixture depends on the input feature and on the task.
    Legend: G global experts, a_NC the aggregated feature.
    """

    def __init__(self, tasks: int, channels: int, hidden: int, count: int, *identity: object):
        super().__init__()
        members = [initial_expert(channels, hidden, *identity, "global", g) for g in range(count)]
        for name, renamed in zip(WEIGHTS, ("w_in_GCH", "b_in_GH", "w_out_GHC", "b_out_GC")):
            self.register_parameter(renamed, nn.Parameter(torch.stack([member[name] for member in members])))
        self.gate_TCG = nn.Parameter(torch.empty(tasks, channels, count).normal_(std=channels**-0.5))
        self.gate_bias_TG = nn.Parameter(torch.zeros(tasks, count))

    def forward(self, a_NC: Tensor) -> Tensor:
        """`y_TNC` for `a_NC`."""
        a_GNC = a_NC.expand(len(self.w_in_GCH), *a_NC.shape)
        hidden_GNH = F.gelu(torch.baddbmm(self.b_in_GH[:, None], a_GNC, self.w_in_GCH))
        out_GNC = torch.baddbmm(self.b_out_GC[:, None], hidden_GNH, self.w_out_GHC)
        a_TNC = a_NC.expand(len(self.gate_TCG), *a_NC.shape)
        gate_TNG = torch.baddbmm(self.gate_bias_TG[:, None], a_TNC, self.gate_TCG).float().softmax(-1)
        return torch.einsum("tng,gnc->tnc", gate_TNG.to(out_GNC.dtype), out_GNC)
