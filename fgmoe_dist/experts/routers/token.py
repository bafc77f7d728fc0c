"""Each token chooses its own experts: T routers, one per task, over N' routed fine experts each. They compute in fp32.

DeepSeekMoE (arXiv 2401.06066) section 3: gates are the softmax scores kept for the selected experts, not
renormalised. Options: sigmoid scores, renormalised gates, noise on the logits, and one softmax over the shared
and the selected routed logits (arXiv 2510.00570). Which experts are selected can further be steered by
    groups      experts that share a device; a token goes to those of few groups only (arXiv 2405.04434, 2.2.2)
    a bias      on the scores, for selection alone, moved against the load after each step (arXiv 2408.15664)
    capacity    slots an expert takes of one image, so that the result does not depend on how a batch is split
    a mask      of experts that are closed to a task (closing.py)
Noise of a deviation that the router learns is added to the logits themselves, as in the noisy top-k gate of
arXiv 1701.06538; what it makes likely is the differentiable load of that paper's appendix A.

Legend: T tasks, N tokens per task, C channels, E routed experts per task, K selected, S shared experts per task,
G groups of experts, I experts of one, M rows that are scored (here the tokens), R rows of slots that share a capacity.
"""

from __future__ import annotations

import math
from typing import Callable, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.experts.balance import BalanceTerms
from fgmoe_dist.experts.routers.base import Router, Routing
from fgmoe_dist.experts.routers.conditioned import CONDITIONS
from fgmoe_dist.experts.settings import Experts

LEAST_DEVIATION = 0.01  # of learnt noise behind a softplus


class TokenRouter(Router):
    """`weight_TCE` of all tasks, the shared experts' logits behind the routed ones when they are gated jointly.

    In its place `conditioned`, one router for all tasks, where the settings say so. `noise_TCE` gives the deviations of
    learnt noise. `bias_TE` is the bias for selection, a buffer; None without `experts.bias_update_rate`.
    """

    def __init__(self, tasks: int, channels: int, config: Experts, ep_size: int = 1):
        super().__init__(tasks, channels, config, ep_size)
        outputs = config.routed + (config.shared if config.shared_gate == "joint" else 0)
        self.weight_TCE = self.conditioned = self.noise_TCE = None
        if config.condition == "none":
            self.weight_TCE = nn.Parameter(torch.empty(tasks, channels, outputs).normal_(std=channels**-0.5))
        else:
            self.conditioned = CONDITIONS[config.condition](tasks, channels, outputs)
        if config.router_init == "zero":
            nn.init.zeros_(self.weight_TCE if self.conditioned is None else self.conditioned.weight_CE)
        if config.noise_kind != "fixed":
            routers = tasks if self.conditioned is None else 1
            self.noise_TCE = nn.Parameter(torch.zeros(routers, channels, config.routed))
        self.register_buffer("bias_TE", torch.zeros(tasks, config.routed) if config.bias_update_rate else None)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own; of one router for all tasks, `conditioned` says."""
        return self.parameters() if self.conditioned is None else iter(())

    def forward(self, x_TNC: Tensor, images: int = 1) -> Routing:
        config = self.config
        # A bf16 product of near-tied logits would select other experts than fp32 does.
        with torch.autocast(x_TNC.device.type, enabled=False):
            rows_TMC = self._rows(at_least_fp32(x_TNC), images)
            logits_TME, shared_TMS = self._logits(rows_TMC)
            logits_TME, by_TME, chance_TME = self._shake(rows_TMC, logits_TME)
            score_TME = self._score(logits_TME)
            expert_TMK = self._select(by_TME.detach())
            gates = self._gate(logits_TME, score_TME, shared_TMS, expert_TMK)
            decided = (logits_TME, score_TME, chance_TME, expert_TMK, *gates)
            logits_TNE, score_TNE, chance_TNE, chosen_TNK, weight_TNK, gates_TNS = self._for_tokens(
                decided, x_TNC.shape[1]
            )
            expert_TNK, dropped_T, kept_TNK = chosen_TNK, None, weight_TNK
            if config.capacity_factor:
                full_TNK = over_capacity(weight_TNK.detach(), expert_TNK, config, images)
                weight_TNK = weight_TNK.masked_fill(full_TNK, 0)
                expert_TNK, dropped_T = expert_TNK.masked_fill(full_TNK, -1), full_TNK.sum((1, 2))
            if config.gate_scale != 1:
                weight_TNK = weight_TNK * config.gate_scale
            if config.score == "sigmoid":  # shares of their sum (DeepSeek-V3 eq. 19), or balance would lower all scores
                score_TNE = score_TNE / score_TNE.sum(-1, keepdim=True)
            balance = BalanceTerms.of(
                logits_TNE, score_TNE, chosen_TNK, dropped_T,
                kept_TNK if "importance" in config.balance_losses else None, chance_TNE,
                "entropy" in config.balance_losses,
            )  # fmt: skip
        return Routing(weight_TNK, expert_TNK, gates_TNS, balance)

    def _logits(self, rows_TMC: Tensor) -> tuple[Tensor, Tensor]:
        """Of the routed experts, and of the shared ones that are gated with them."""
        if self.conditioned is None:
            all_TME = torch.bmm(rows_TMC, at_least_fp32(self.weight_TCE))
        else:
            all_TME = self.conditioned(rows_TMC)
        return all_TME.split([self.config.routed, all_TME.shape[2] - self.config.routed], dim=2)

    def _shake(self, rows_TMC: Tensor, logits_TME: Tensor) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """The logits that gates are made of, those that select, and if a loss wants it each expert's chance to be.

        Experts that are closed to a task have -inf.
        """
        config, clean_TME, by_TME, chance_TME = self.config, logits_TME, logits_TME, None
        if config.noise and self.training:
            deviation_TME = self._deviation(rows_TMC)
            by_TME = logits_TME + deviation_TME * torch.randn_like(logits_TME)
            if config.noise_kind != "fixed":
                logits_TME = by_TME
            if "load" in config.balance_losses:
                chance_TME = chance_to_be_selected(clean_TME, self._open(by_TME), deviation_TME, config.top_k)
                if self.closed_TE is not None:
                    chance_TME = chance_TME.masked_fill(self.closed_TE[:, None], 0)
        return self._open(logits_TME), self._open(by_TME), chance_TME

    def _deviation(self, rows_TMC: Tensor) -> float | Tensor:
        """Of the noise on each logit."""
        config = self.config
        if config.noise_kind == "fixed":
            return config.noise
        learnt_TME = rows_TMC @ at_least_fp32(self.noise_TCE)
        if config.noise_kind == "softplus":
            learnt_TME = F.softplus(learnt_TME) + LEAST_DEVIATION
        return config.noise * learnt_TME

    def _open(self, logits_TME: Tensor) -> Tensor:
        return logits_TME if self.closed_TE is None else logits_TME.masked_fill(self.closed_TE[:, None], -math.inf)

    def _rows(self, x_TNC: Tensor, images: int) -> Tensor:
        """What is scored: `x_TMC`."""
        return x_TNC

    def _for_tokens(self, decided: Sequence[Optional[Tensor]], tokens: int) -> Sequence[Optional[Tensor]]:
        """What was decided for the rows, `[T, M, ...]`, for the tokens: `[T, N, ...]`."""
        return decided

    def _score(self, logits_TNE: Tensor) -> Tensor:
        return logits_TNE.sigmoid() if self.config.score == "sigmoid" else logits_TNE.softmax(-1)

    def _select(self, by_TNE: Tensor) -> Tensor:
        """The experts of each token. Without a bias by logits, whose order is the scores', but finer."""
        config = self.config
        if self.bias_TE is not None:
            by_TNE = self._open(self._score(by_TNE) + self.bias_TE[:, None])
        if self.gone_TE is not None:
            by_TNE = by_TNE.masked_fill(self.gone_TE[:, None], -math.inf)
        if 0 < config.max_ranks_per_token < self.groups:
            by_TNE = keep_best_groups(by_TNE, self.groups, config.max_ranks_per_token)
        return by_TNE.topk(config.top_k, dim=-1).indices

    def _gate(
        self, logits_TNE: Tensor, score_TNE: Tensor, shared_TNS: Tensor, expert_TNK: Tensor
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Gates of the selected experts, and of the shared ones if they are gated."""
        if self.config.shared_gate == "joint":
            joint = torch.cat([logits_TNE.gather(2, expert_TNK), shared_TNS], dim=2).softmax(-1)
            return joint.split([self.config.top_k, self.config.shared], dim=2)
        weight_TNK = score_TNE.gather(2, expert_TNK)
        if self.config.renormalise:
            weight_TNK = weight_TNK / weight_TNK.sum(-1, keepdim=True).clamp(min=torch.finfo(weight_TNK.dtype).eps)
        return weight_TNK, None

    @torch.no_grad()
    def after_step(self, load_TE: Tensor) -> None:
        """The bias takes a step against the load: b += u * sign(mean load - load). Nothing without a bias."""
        if self.bias_TE is not None:
            load_TE = load_TE.double()  # a sum of whole numbers, so that an even load has exactly the mean
            self.bias_TE += self.config.bias_update_rate * (load_TE.mean(1, keepdim=True) - load_TE).sign()

    def _apply(self, fn: Callable, recurse: bool = True) -> TokenRouter:
        """Moves and casts as any module, but for the bias: steps of 0.001 would be lost in bf16."""
        bias_TE = self.bias_TE
        super()._apply(fn, recurse)
        if bias_TE is not None:
            self.bias_TE = bias_TE.to(self.bias_TE.device)
        return self


def keep_best_groups(score_TNE: Tensor, groups: int, kept: int) -> Tensor:
    """`score_TNE` with -inf outside the `kept` groups of experts whose best score is highest."""
    score_TNGI = score_TNE.unflatten(2, (groups, -1))
    group_TNM = score_TNGI.amax(-1).topk(kept, dim=-1).indices
    closed_TNG = torch.ones_like(score_TNGI[..., 0], dtype=torch.bool).scatter_(2, group_TNM, False)
    return score_TNGI.masked_fill(closed_TNG[..., None], -math.inf).flatten(2)


def chance_to_be_selected(clean_TNE: Tensor, by_TNE: Tensor, deviation_TNE: float | Tensor, top_k: int) -> Tensor:
    """How likely an expert would be selected, had its own noise been drawn anew and that of no other.

    Phi((clean - bar) / deviation), where the bar is the k-th best of the other experts' noisy logits `by`
    (arXiv 1701.06538, eq. 9).
    """
    if top_k == by_TNE.shape[2]:
        return torch.ones_like(by_TNE)
    best_TNK = by_TNE.topk(top_k + 1, dim=-1).values
    last_in_TN1, first_out_TN1 = best_TNK[..., -2:-1], best_TNK[..., -1:]
    bar_TNE = torch.where(by_TNE > first_out_TN1, first_out_TN1, last_in_TN1)
    # The sign of a raw deviation is nobody's business.
    scale_TNE = deviation_TNE if isinstance(deviation_TNE, float) else deviation_TNE.abs().clamp(min=1e-6)
    return torch.special.ndtr((clean_TNE - bar_TNE) / scale_TNE)


def over_capacity(weight_TNK: Tensor, expert_TNK: Tensor, config: Experts, images: int) -> Tensor:
    """Which slots find their expert full: all but the `capacity` highest gates of an image; of equals, the later token.

    An expert takes at most ceil(factor * K * n / E) of the K * n slots of each of the `images`, n tokens per image.
    """
    tasks, tokens, top_k = weight_TNK.shape
    slots = tokens // max(1, images) * top_k  # a rank may have no images
    capacity = math.ceil(config.capacity_factor * slots / config.routed - 1e-9)  # 1.1 * 100 / 10 is not above 11
    weight_RS, expert_RS = (each.reshape(tasks * images, slots) for each in (weight_TNK, expert_TNK))
    order_RS = weight_RS.argsort(dim=1, descending=True, stable=True)
    order_RS = order_RS.gather(1, expert_RS.gather(1, order_RS).argsort(dim=1, stable=True))  # by expert, then gate
    expert_RS = expert_RS.gather(1, order_RS)
    place_RS = torch.arange(slots, device=expert_RS.device) - torch.searchsorted(expert_RS, expert_RS)
    full_RS = torch.empty_like(place_RS, dtype=torch.bool).scatter_(1, order_RS, place_RS >= capacity)
    return full_RS.view(tasks, tokens, top_k)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
