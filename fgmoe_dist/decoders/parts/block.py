"""The FGMoE block (arXiv 2507.19077; formulas of DeepSeekMoE, arXiv 2401.06066, section 3), one page.

For task t with token u, the aggregated feature a of the same place, and u' = norm(u):

    h = u + sum_{s <= K_s} E^t_s(u')              shared experts of the task, always on
          + sum_{i in TopK} g_i E^t_i(u')         routed fine experts of the task, g = kept router scores
          + sum_g softmax(a W_t)_g E_g(norm(a))   global experts, by feature and task

With `experts.task_embedding` u is u + e_t first, e_t a learnt vector of the task (Mod-Squad, CVPR 2023).
Each E is a fine expert: an MLP of hidden size H/m, or another kind of experts/kinds/. The global experts, of hidden
size H, read the one feature that all tasks share. What the paper leaves open (m, N, k, router, balance) is a setting.

So tasks share the global experts' weights, but nothing that one task has found at a place reaches another there. With
`experts.global_input: tasks` it does: the last term becomes

          + sum_g softmax_g(u' W_t)_g E_g(v_g),    v_g = sum_s softmax_s(u'_s R_s)_g u'_s      over all tasks s

Each global expert gathers from the tasks what it reads, by their features and by weights R_s of each; each task takes
from the experts what helps it, as before. They still run once a place for all tasks, so that both cost the same but for
the sums. Nothing in it knows tasks by their order: tasks that change places, with all that is theirs, change places in
h. One task alone reads itself, v_g = u', and has a mixture of always-on experts.

Legend: T tasks, N tokens (images x grid, image after image), C channels.
"""

from __future__ import annotations

from typing import Iterator, Optional, Sequence

import torch
from torch import Tensor, nn

from fgmoe_dist.experts.backends import create_routed_experts
from fgmoe_dist.experts.bank import SharedExperts, create_global_experts
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
        self.crosses_tasks = config.crosses_tasks
        if config.task_embedding:
            self.task_TC = nn.Parameter(torch.empty(tasks, channels).normal_(std=0.02))
        self.norm = nn.LayerNorm(channels)
        self.routed = create_routed_experts(tasks, channels, config, ep_size, block, seed, grid_hw)
        self.shared = self.global_experts = self.global_norm = None
        if config.shared:
            self.shared = SharedExperts(kind, tasks, channels, config.fine_hidden, config.shared, *identity)
        if config.global_experts:
            self.global_norm = None if config.crosses_tasks else nn.LayerNorm(channels)
            self.global_experts = create_global_experts(kind, tasks, channels, config, *identity)

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
            h_TNC = h_TNC + self.global_experts(x_TNC if self.global_norm is None else self.global_norm(a_NC))
        return h_TNC + self.routed.combine(journey), *journey.routing.balance

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own, beside those that its parts say: its vector, if no other reads it."""
        return iter(() if self.task_TC is None or self.crosses_tasks else (self.task_TC,))
