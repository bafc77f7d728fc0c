"""The definition of a block's routed experts, one token at a time, in float64. Slow, and obviously right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fgmoe_dist.config import Experts


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def fine_expert(x_C: Tensor, w_in_CH: Tensor, b_in_H: Tensor, w_out_HC: Tensor, b_out_C: Tensor) -> Tensor:
    return gelu(x_C @ w_in_CH + b_in_H) @ w_out_HC + b_out_C


def routed_experts(x_TNC: Tensor, router_TCE: Tensor, weights: dict, config: Experts) -> Tensor:
    """`weights[task, expert]` = the four tensors of one fine expert."""
    out = torch.zeros_like(x_TNC)
    for t, x_NC in enumerate(x_TNC):
        for n, x_C in enumerate(x_NC):
            logits_E = x_C @ router_TCE[t]
            scores_E = torch.sigmoid(logits_E) if config.score == "sigmoid" else torch.softmax(logits_E, 0)
            chosen = sorted(range(len(scores_E)), key=lambda e: -logits_E[e].item())[: config.top_k]
            kept = sum(scores_E[e] for e in chosen)
            for e in chosen:
                gate = scores_E[e] / kept if config.renormalise else scores_E[e]
                out[t, n] = out[t, n] + gate * fine_expert(x_C, *weights[t, e])
    return out
