"""T routers, one a task, over N' routed fine experts each. They compute in fp32.

DeepSeekMoE (arXiv 2401.06066) section 3: gates are the softmax scores kept for the selected experts, not
renormalised. Options: sigmoid scores, renormalised gates, noise on the logits, and one softmax over the shared
and the selected routed logits (arXiv 2510.00570).

Legend: T tasks, N tokens a task, C channels, E routed experts a task, K selected, S shared experts a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from fgmoe_dist.config import Experts


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a block go, and what balancing needs to know of it."""

    weight_TNK: Tensor  # gates, differentiable
    expert_TNK: Tensor  # selected expert of the task, 0..E-1
    shared_TNS: Optional[Tensor]  # gates of the shared experts; None: ungated
    balance: BalanceTerms


class BalanceTerms(NamedTuple):
    """The sums of one block from which its balance losses are made, once the load of all ranks is known."""

    load_TE: Tensor  # tokens that chose each expert, here
    importance_TE: Tensor  # P_i, mean score of each expert, differentiable
    z: Tensor  # mean of logsumexp(logits)^2, differentiable

    @staticmethod
    def of(logits_TNE: Tensor, score_TNE: Tensor, expert_TNK: Tensor) -> BalanceTerms:
        tasks, tokens, experts = score_TNE.shape
        chosen = expert_TNK.flatten(1)
        load_TE = score_TNE.new_zeros(tasks, experts).scatter_add_(1, chosen, torch.ones_like(chosen).to(score_TNE))
        tokens = max(1, tokens)  # a rank may have none
        z = logits_TNE.logsumexp(-1).square().sum() / (tasks * tokens)
        return BalanceTerms(load_TE, score_TNE.sum(1) / tokens, z)

    def loss(self, global_load_TE: Tensor) -> Tensor:
        """sum_i f_i P_i, mean over tasks; f_i = E / (K * tokens) * load_i over all ranks (DeepSeekMoE eq. 12-14)."""
        experts = self.load_TE.shape[1]
        share_TE = global_load_TE / global_load_TE.sum(1, keepdim=True).clamp(min=1)  # load / (K * tokens)
        return (experts * share_TE * self.importance_TE).sum(1).mean()


class Routers(nn.Module):
    """`weight_TCE` of all tasks, the shared experts' logits behind the routed ones when they are gated jointly."""

    def __init__(self, tasks: int, channels: int, config: Experts):
        super().__init__()
        self.config = config
        outputs = config.routed + (config.shared if config.shared_gate == "joint" else 0)
        self.weight_TCE = nn.Parameter(torch.empty(tasks, channels, outputs).normal_(std=channels**-0.5))

    def forward(self, x_TNC: Tensor) -> Routing:
        config = self.config
        # A bf16 product of near-tied logits would select other experts than fp32 does.
        with torch.autocast(x_TNC.device.type, enabled=False):
            logits_TNE, shared_TNS = torch.bmm(_at_least_fp32(x_TNC), _at_least_fp32(self.weight_TCE)).split(
                [config.routed, self.weight_TCE.shape[2] - config.routed], dim=2
            )
            score_TNE = logits_TNE.sigmoid() if config.score == "sigmoid" else logits_TNE.softmax(-1)
            chosen_by_TNE = logits_TNE.detach()
            if config.noise and self.training:
                chosen_by_TNE = chosen_by_TNE + config.noise * torch.randn_like(chosen_by_TNE)
            expert_TNK = chosen_by_TNE.topk(config.top_k, dim=-1).indices
            weight_TNK = score_TNE.gather(2, expert_TNK)
            gates_TNS = None
            if config.shared_gate == "joint":
                joint = torch.cat([logits_TNE.gather(2, expert_TNK), shared_TNS], dim=2).softmax(-1)
                weight_TNK, gates_TNS = joint.split([config.top_k, config.shared], dim=2)
            elif config.renormalise:
                weight_TNK = weight_TNK / weight_TNK.sum(-1, keepdim=True).clamp(min=torch.finfo(weight_TNK.dtype).eps)
        return Routing(weight_TNK, expert_TNK, gates_TNS, BalanceTerms.of(logits_TNE, score_TNE, expert_TNK))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
