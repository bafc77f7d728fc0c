"""Each expert chooses its tokens: expert choice (Zhou et al., arXiv 2202.09368), an image at a time.

Of the n tokens of an image and task, each of E experts takes the max(1, k n / E) whose scores for it are highest, so
that the load is even without any loss. A token may be taken by all experts or by none; k take it on average. The paper
chooses among the tokens of a batch; an image at a time, a prediction does not depend on what else is in it.

Legend: T tasks, N tokens per task, C channels, E routed experts per task, B images, n tokens of one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgmoe_dist.experts.balance import BalanceTerms, entropy_of
from fgmoe_dist.experts.routers.base import Routing
from fgmoe_dist.experts.routers.token import TokenRouter, at_least_fp32


class ExpertRouter(TokenRouter):
    """Its `Routing` has a slot for every expert, -1 where the expert did not choose the token."""

    def forward(self, x_TNC: Tensor, images: int = 1) -> Routing:
        config = self.config
        with torch.autocast(x_TNC.device.type, enabled=False):
            logits_TNE, _ = self._logits(at_least_fp32(x_TNC))
            logits_TNE = self._open(logits_TNE)
            score_TNE = self._score(logits_TNE)
            chosen_TNE = self._choose(score_TNE.detach(), images)
            weight_TNE = score_TNE.where(chosen_TNE, 0)
            if config.renormalise:
                weight_TNE = weight_TNE / weight_TNE.sum(-1, keepdim=True).clamp(min=torch.finfo(weight_TNE.dtype).eps)
            every_E = torch.arange(config.routed, device=x_TNC.device)
            balance = BalanceTerms(
                load_TE=chosen_TNE.sum(1).to(score_TNE),
                dropped_T=score_TNE.new_zeros(self.tasks),
                tokens=score_TNE.new_full((), x_TNC.shape[1]),
                score_TE=score_TNE.sum(1),
                z=logits_TNE.logsumexp(-1).square().sum(),
                gate_TE=weight_TNE.sum(1) if "importance" in config.balance_losses else None,
                entropy=entropy_of(score_TNE) if "entropy" in config.balance_losses else None,
            )
        return Routing(weight_TNE * config.gate_scale, every_E.where(chosen_TNE, -1), None, balance)

    def _choose(self, score_TNE: Tensor, images: int) -> Tensor:
        """Whether an expert takes a token."""
        score_TBnE = score_TNE.unflatten(1, (images, score_TNE.shape[1] // max(1, images)))
        tokens = score_TBnE.shape[2]
        taken = min(tokens, max(1, self.config.top_k * tokens // self.config.routed))
        best_TBcE = score_TBnE.topk(taken, dim=2).indices
        chosen_TNE = torch.zeros_like(score_TBnE, dtype=torch.bool).scatter_(2, best_TBcE, True).flatten(1, 2)
        for closed_TE in (self.closed_TE, self.gone_TE):
            chosen_TNE = chosen_TNE if closed_TE is None else chosen_TNE & ~closed_TE[:, None]
        return chosen_TNE
