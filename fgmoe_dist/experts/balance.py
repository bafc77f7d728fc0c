"""The load of the experts: what balancing adds up, the losses it makes of that, and the figures that a run shows.

A router gives the `BalanceTerms` of its tokens on this rank. `auxiliary_losses` adds them up over all ranks, in one
exchange for all blocks, and gives each loss with its weight. A new loss is a function of `Sums` and a line in
`BALANCE`; its weight is `experts.balance_losses.NAME`.

Legend: L blocks, T tasks, N tokens of a task, E routed experts that it may choose, K selected, G groups of experts,
I experts of one, R ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fgmoe_dist.experts.settings import Experts


class BalanceTerms(NamedTuple):
    """Sums over the tokens of a block on this rank; added up over all ranks, they make its balance losses."""

    load_TE: Tensor  # slots that chose each expert, dropped ones too
    dropped_T: Tensor  # slots that found their expert full
    tokens: Tensor  # N
    score_TE: Tensor  # of each expert, differentiable
    z: Tensor  # of logsumexp(logits)^2, all tasks; differentiable

    @staticmethod
    def of(
        logits_TNE: Tensor, score_TNE: Tensor, expert_TNK: Tensor, dropped_T: Optional[Tensor] = None
    ) -> BalanceTerms:
        """`expert_TNK` before any were dropped; no `dropped_T`: none."""
        tasks, tokens, experts = score_TNE.shape
        chosen = expert_TNK.flatten(1)
        load_TE = score_TNE.new_zeros(tasks, experts).scatter_add_(1, chosen, torch.ones_like(chosen).to(score_TNE))
        return BalanceTerms(
            load_TE,
            score_TNE.new_zeros(tasks) if dropped_T is None else dropped_T.to(score_TNE),
            score_TNE.new_full((), tokens),
            score_TNE.sum(1),
            logits_TNE.logsumexp(-1).square().sum(),
        )


@dataclass(frozen=True)
class Sums:
    """A block's terms, of this rank and of all.

    A loss made of them is one of all ranks' tokens: the mean over ranks is the loss, and the mean of the ranks'
    gradients, which is what an engine takes, its gradient.
    """

    here: BalanceTerms
    load_TE: Tensor  # this and what follows of all ranks, without gradient
    score_TE: Tensor
    dropped_T: Tensor
    tokens: Tensor
    ranks: int
    groups: int

    @property
    def f_TE(self) -> Tensor:
        """Load in even loads: E / (K N) * load."""
        experts = self.load_TE.shape[1]
        return experts * self.load_TE / self.load_TE.sum(1, keepdim=True).clamp(min=1)  # the load is K * N in all

    @property
    def share(self) -> Tensor:
        """What makes of this rank's sum its part of the mean over all tokens."""
        return self.ranks / self.tokens.clamp(min=1)

    @property
    def p_TE(self) -> Tensor:
        """This rank's part of the mean score, for losses that are linear in it."""
        return self.here.score_TE * self.share

    @property
    def mean_score_TE(self) -> Tensor:
        """The mean score itself, the same on every rank, with the gradient of this rank's part."""
        change_TE = self.here.score_TE - self.here.score_TE.detach()  # zero
        return (self.score_TE + self.ranks * change_TE) / self.tokens.clamp(min=1)


def even_experts(sums: Sums) -> Tensor:
    """sum_i f_i P_i, mean over tasks (DeepSeekMoE, arXiv 2401.06066, eq. 12-14); 1 if even."""
    return (sums.f_TE * sums.p_TE).sum(1).mean()


def even_devices(sums: Sums) -> Tensor:
    """The same over groups: f' the mean of a group's f, P' the sum of its P (eq. 15-17); 1 if even."""
    f_TGI, p_TGI = (each.unflatten(1, (sums.groups, -1)) for each in (sums.f_TE, sums.p_TE))
    return (f_TGI.mean(2) * p_TGI.sum(2)).sum(1).mean()


def z_loss(sums: Sums) -> Tensor:
    """Mean logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return sums.here.z * sums.share / len(sums.load_TE)


def pooled(sums: Sums) -> Tensor:
    """Squared coefficient of variation of the experts' scores, all tasks together; 0 if even, E if one has all.

    It suits a bank that tasks share: a task may specialise as long as the pool is even. MLoRE (CVPR 2024) takes it of
    the gates that are left after selection.
    """
    importance_E = sums.mean_score_TE.mean(0)
    return importance_E.var() / importance_E.mean().square().clamp(min=torch.finfo(importance_E.dtype).tiny)


# In the order in which they are added to a total.
BALANCE: dict[str, Callable[[Sums], Tensor]] = {
    "balance": even_experts,
    "z": z_loss,
    "device_balance": even_devices,
    "pooled": pooled,
}


def auxiliary_losses(
    terms: Sequence[BalanceTerms], settings: Experts, groups: int
) -> tuple[dict[str, tuple[float, Tensor]], dict[str, Tensor]]:
    """Of all blocks' `terms`: `{logged name: (weight, loss)}`, each loss the mean over blocks; and what was counted.

    The counts are `load [L, T, E]`, slots of all ranks that chose each expert, and `dropped [L, T]`, those of them that
    found it full. `groups` of experts share a device. A collective: one small exchange.
    """
    blocks, weights = sum_over_ranks(terms, groups), settings.balance_weights()
    losses = {
        f"experts/{name}_loss": (weights[name], torch.stack([loss(sums) for sums in blocks]).mean())
        for name, loss in BALANCE.items()
        if name in weights
    }
    counts = {
        "load": torch.stack([sums.load_TE for sums in blocks]),
        "dropped": torch.stack([sums.dropped_T for sums in blocks]),
    }
    return losses, counts


def sum_over_ranks(terms: Sequence[BalanceTerms], groups: int) -> list[Sums]:
    """A collective: all that the blocks count, in one small exchange."""
    columns = [
        torch.cat([t.load_TE, t.score_TE, t.dropped_T[:, None], t.tokens.expand(len(t.load_TE), 1)], 1) for t in terms
    ]
    sums_LTX, ranks = torch.stack(columns).detach(), 1
    if dist.is_initialized():
        dist.all_reduce(sums_LTX)
        ranks = dist.get_world_size()
    experts = terms[0].load_TE.shape[1]
    return [
        Sums(here, *sums_TX[:, : 2 * experts].chunk(2, dim=1), sums_TX[:, -2], sums_TX[0, -1], ranks, groups)
        for here, sums_TX in zip(terms, sums_LTX)
    ]


class LoadFigures(NamedTuple):
    """How even the load of a task's experts is."""

    entropy: float  # 1: even
    busiest: float  # load of the busiest expert over the even one
    dead: int  # experts that nobody chose
    dropped: float  # share of the slots that found their expert full


def load_figures(load_E: np.ndarray, dropped: float) -> LoadFigures:
    """The figures of one task: `load_E` counts slots by the expert they chose, `dropped` those that found it full."""
    slots, experts = max(load_E.sum(), 1), len(load_E)
    share_E = load_E[load_E > 0] / slots
    entropy = (share_E * np.log(1 / share_E)).sum() / math.log(max(2, experts))
    return LoadFigures(
        float(entropy), float(load_E.max() * experts / slots), int((load_E == 0).sum()), float(dropped / slots)
    )


def figures_of(counts: dict[str, Tensor]) -> list[list[LoadFigures]]:
    """The figures of each block and task."""
    load_LTE, dropped_LT = counts["load"].double().cpu().numpy(), counts["dropped"].tolist()
    return [
        [load_figures(load_E, dropped) for load_E, dropped in zip(load_TE, dropped_T)]
        for load_TE, dropped_T in zip(load_LTE, dropped_LT)
    ]


def metrics(counts: dict[str, Tensor], task_names: Sequence[str], ep_size: int) -> dict[str, float]:
    """What a line of metrics.jsonl says of the load: `LoadFigures` of each block and task, and the ranks' imbalance."""
    figures = {
        f"experts/{figure}/block{block}/{name}": float(value)
        for block, figures_T in enumerate(figures_of(counts))
        for name, of_task in zip(task_names, figures_T)
        for figure, value in of_task._asdict().items()
    }
    return {"experts/rank_imbalance": rank_imbalance(counts["load"], ep_size), **figures}


def rank_imbalance(load_LTE: Tensor, ep_size: int) -> float:
    """Slots routed to the busiest rank's share of the experts over the mean, all blocks and tasks together: what
    `fgmoe plan --imbalance` takes. Dropped slots count.
    """
    load_R = load_LTE.double().unflatten(-1, (ep_size, -1)).sum((0, 1, 3))
    return (load_R.max() / load_R.mean().clamp(min=1)).item()
