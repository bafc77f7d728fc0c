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

# Of `BalanceTerms`, what has a number for each task and expert.
PER_EXPERT = ("load_TE", "score_TE", "gate_TE", "chance_TE")


class BalanceTerms(NamedTuple):
    """Sums over the tokens of a block on this rank; added up over all ranks, they make its balance losses."""

    load_TE: Tensor  # slots that chose each expert, dropped ones too
    dropped_T: Tensor  # slots that found their expert full
    tokens: Tensor  # N
    score_TE: Tensor  # of each expert, differentiable
    z: Tensor  # of logsumexp(logits)^2, all tasks; differentiable
    gate_TE: Optional[Tensor] = None  # of each expert's gates where it was selected, differentiable
    chance_TE: Optional[Tensor] = None  # of each expert's chance to be selected by noise, differentiable
    entropy: Optional[Tensor] = None  # of the tokens' scores, all tasks; differentiable

    @staticmethod
    def of(
        logits_TNE: Tensor,
        score_TNE: Tensor,
        expert_TNK: Tensor,
        dropped_T: Optional[Tensor] = None,
        gate_TNK: Optional[Tensor] = None,
        chance_TNE: Optional[Tensor] = None,
        with_entropy: bool = False,
    ) -> BalanceTerms:
        """`expert_TNK`, and the gates of these, before any were dropped; no `dropped_T`: none."""
        tasks, tokens, experts = score_TNE.shape
        chosen, none_TE = expert_TNK.flatten(1), score_TNE.new_zeros(tasks, experts)
        load_TE = none_TE.scatter_add(1, chosen, torch.ones_like(chosen).to(score_TNE))
        return BalanceTerms(
            load_TE,
            score_TNE.new_zeros(tasks) if dropped_T is None else dropped_T.to(score_TNE),
            score_TNE.new_full((), tokens),
            score_TNE.sum(1),
            logits_TNE.logsumexp(-1).square().sum(),
            None if gate_TNK is None else none_TE.scatter_add(1, chosen, gate_TNK.flatten(1)),
            None if chance_TNE is None else chance_TNE.sum(1),
            entropy_of(score_TNE) if with_entropy else None,
        )


def entropy_of(score_TNE: Tensor) -> Tensor:
    """Of each token's scores, a number for all tokens and tasks together."""
    return torch.special.entr(score_TNE).sum()


@dataclass(frozen=True)
class Sums:
    """A block's terms, of this rank and of all.

    A loss made of them is one of all ranks' tokens: the mean over ranks is the loss, and the mean of the ranks'
    gradients, which is what an engine takes, its gradient.
    """

    here: BalanceTerms
    total: BalanceTerms  # of all ranks, without gradient and without `z`
    ranks: int
    groups: int

    @property
    def load_TE(self) -> Tensor:
        return self.total.load_TE

    @property
    def score_TE(self) -> Tensor:
        return self.total.score_TE

    @property
    def tokens(self) -> Tensor:
        return self.total.tokens

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
        return self.whole("score_TE") / self.tokens.clamp(min=1)

    def whole(self, term: str) -> Tensor:
        """A sum of all ranks by its name in `BalanceTerms`, the same on each, with the gradient of this rank's part."""
        here = getattr(self.here, term)
        change = here - here.detach()  # zero
        return getattr(self.total, term) + self.ranks * change


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
    return squared_variation(sums.mean_score_TE.mean(0))


def importance(sums: Sums) -> Tensor:
    """Squared coefficient of variation of a task's experts' gates, mean over tasks (arXiv 1701.06538, eq. 7).

    0 if even, E if one has all. Of the scores where a router tells no gates.
    """
    return squared_variation(sums.whole("score_TE" if sums.here.gate_TE is None else "gate_TE")).mean()


def load(sums: Sums) -> Tensor:
    """The same of each expert's chance to be selected under the router's noise (arXiv 1701.06538, eq. 10-11).

    Without noise it is that of the slots that chose each expert, which has no gradient. M3ViT (NeurIPS 2022) weighs
    `importance` and this with 0.01 each, as sums over its layers and tasks; here both are means.
    """
    return squared_variation(sums.load_TE if sums.here.chance_TE is None else sums.whole("chance_TE")).mean()


def mutual_information(sums: Sums) -> Tensor:
    """Minus the mutual information of task and expert in a bank that tasks share (Mod-Squad, CVPR 2023).

    With P(t, e) = mean score / T it is -sum P log(P / (P_t P_e)): 0 where all tasks use the experts alike, and -log T
    where no two use the same. The floors are those of Mod-Squad's code, which takes the sum over layers, not the mean.
    """
    p_TE = sums.mean_score_TE / len(sums.load_TE)
    p_T1, p_1E = p_TE.sum(1, keepdim=True) + FLOOR, p_TE.sum(0, keepdim=True) + FLOOR
    return -(p_TE * (p_TE / (p_T1 * p_1E) + FLOOR).log()).sum()


FLOOR = 1e-4


def entropy(sums: Sums) -> Tensor:
    """Mean over tokens of the entropy of a token's scores, -sum_e p_e log p_e (SEER-MoE, arXiv 2404.05089).

    Low where each token knows its experts, so that it can do with fewer: for fine-tuning a pruned model.
    """
    return sums.here.entropy * sums.share / len(sums.load_TE)


def squared_variation(value_E: Tensor) -> Tensor:
    """var / mean^2 over the last dimension."""
    least = torch.finfo(value_E.dtype).tiny
    return value_E.var(-1) / value_E.mean(-1).square().clamp(min=least)


# In the order in which they are added to a total.
BALANCE: dict[str, Callable[[Sums], Tensor]] = {
    "balance": even_experts,
    "z": z_loss,
    "device_balance": even_devices,
    "pooled": pooled,
    "importance": importance,
    "load": load,
    "mutual_information": mutual_information,
    "entropy": entropy,
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
        "dropped": torch.stack([sums.total.dropped_T for sums in blocks]),
    }
    return losses, counts


def sum_over_ranks(terms: Sequence[BalanceTerms], groups: int) -> list[Sums]:
    """A collective: all that the blocks count, in one small exchange."""
    names = [name for name in PER_EXPERT if getattr(terms[0], name) is not None]
    columns = [
        torch.cat([*(getattr(t, name) for name in names), t.dropped_T[:, None], t.tokens.expand(len(t.load_TE), 1)], 1)
        for t in terms
    ]
    sums_LTX, ranks = torch.stack(columns).detach(), 1
    if dist.is_initialized():
        dist.all_reduce(sums_LTX)
        ranks = dist.get_world_size()
    found = []
    for here, sums_TX in zip(terms, sums_LTX):
        per_expert = dict(zip(names, sums_TX[:, :-2].chunk(len(names), dim=1)))
        total = BalanceTerms(dropped_T=sums_TX[:, -2], tokens=sums_TX[0, -1], z=None, **per_expert)
        found.append(Sums(here, total, ranks, groups))
    return found


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
