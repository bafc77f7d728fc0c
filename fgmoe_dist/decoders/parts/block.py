"""The FGMoE block (arXiv 2507.19077; formulas of DeepSeekMoE, arXiv 2401.06066, section 3), one page.

For task t with token u, the aggregated feature a of the same place, and u' = norm(u):

    h = u + sum_{s <= K_s} E^t_s(u')              shared experts of the task, always on
          + sum_{i in TopK} g_i E^t_i(u')         routed fine experts of the task, g = kept router scores
          + sum_g softmax(a W_t)_g E_g(norm(a))   global experts, by feature and task

With `experts.task_embedding` u is u + e_t first, e_t a learnt vector of the task (Mod-Squad, CVPR 2023).
Each E is a fine expert: an MLP of hidden size H/m, or another kind of experts/kinds/. The global experts, of hidden
size H, read the one feature that all tasks share. What the paper leaves open (m, N, k, router, balance) is a setting.

Legend: T tasks, N tokens (images x grid, image after image), C channels.
"""

from __future__ import annotations

from typing import Iterator, Optional, Sequence

import torch
from torch import Tensor, nn

from fgmoe_dist.experts.backends import create_routed_experts
from fgmoe_dist.experts.bank import GlobalExperts, SharedExperts
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.settings import Experts


class FGMoEBlock(nn.Module):
    def __init__(
        self,
        tasks: int,
        channels: int,
        config: Experts,
        ep_size: int,
        block: int,
        seed: int,
        grid_hw: Optional[Sequence[int]] = None,
    ):
        super().__init__()
        kind, identity = KINDS[config.kind], (seed, "block", block)
        if grid_hw is not None:
            kind = kind.on(grid_hw)
        self.task_TC, self.watched, self.seen_TPC = None, config.diversity, None
        if config.task_embedding:
            self.task_TC = nn.Parameter(torch.empty(tasks, channels).normal_(std=0.02))
        self.norm = nn.LayerNorm(channels)
        self.routed = create_routed_experts(tasks, channels, config, ep_size, block, seed, grid_hw)
        self.shared = self.global_experts = None
        if config.shared:
            self.shared = SharedExperts(kind, tasks, channels, config.fine_hidden, config.shared, *identity)
        if config.global_experts:
            self.global_norm = nn.LayerNorm(channels)
            self.global_experts = GlobalExperts(kind, tasks, channels, config.hidden, config.global_experts, *identity)

    def forward(self, u_TNC: Tensor, a_NC: Tensor, images: int = 1) -> tuple[Tensor, ...]:
        """`h_TNC` and the `BalanceTerms`, bare: activation checkpointing gives nothing else a gradient."""
        if self.task_TC is not None:
            u_TNC = u_TNC + self.task_TC[:, None]
        x_TNC = self.norm(u_TNC)
        if self.watched:
            self.seen_TPC = x_TNC[:, : self.watched].detach()
        h_TNC = u_TNC
        journey = self.routed.dispatch(x_TNC, images)
        if self.shared is not None:  # while tokens travel out
            h_TNC = h_TNC + self.shared(x_TNC, journey.routing.shared_TNS)
        self.routed.compute(journey)
        if self.global_experts is not None:  # while their sums travel back
            h_TNC = h_TNC + self.global_experts(self.global_norm(a_NC))
        return h_TNC + self.routed.combine(journey), *journey.routing.balance

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own, beside those that its parts say: its vector."""
        return iter(() if self.task_TC is None else (self.task_TC,))
