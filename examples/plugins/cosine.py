"""A router: experts by the angle between a token and a direction of theirs, whatever the token's length."""

import torch
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.experts.balance import BalanceTerms
from fgmoe_dist.experts.routers import ROUTERS, Router, Routing

SHARPNESS = 10.0


class Cosine(Router):
    def __init__(self, tasks, channels, config, ep_size=1):
        super().__init__(tasks, channels, config, ep_size)
        self.weight_TCE = nn.Parameter(torch.randn(tasks, channels, config.routed))

    def forward(self, x_TNC, images=1):
        x_TNC, weight_TCE = F.normalize(x_TNC.float(), dim=2), F.normalize(self.weight_TCE.float(), dim=1)
        logits_TNE = SHARPNESS * torch.bmm(x_TNC, weight_TCE)
        score_TNE = logits_TNE.softmax(-1)
        gate_TNK, expert_TNK = score_TNE.topk(self.config.top_k, dim=-1)
        return Routing(gate_TNK, expert_TNK, None, BalanceTerms.of(logits_TNE, score_TNE, expert_TNK))


ROUTERS["cosine"] = Cosine
