"""The definition of a block's routed experts, one token at a time, in float64. Slow, and obviously right."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from fgmoe_dist.experts.settings import Experts


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def fine_expert(x_C: Tensor, w_in_CH: Tensor, b_in_H: Tensor, w_out_HC: Tensor, b_out_C: Tensor) -> Tensor:
    return gelu(x_C @ w_in_CH + b_in_H) @ w_out_HC + b_out_C


def low_rank(x_C: Tensor, a_CR: Tensor, b_RC: Tensor) -> Tensor:
    return x_C @ a_CR @ b_RC


def low_rank_convolution(
    x_NC: Tensor, w_in_DR: Tensor, b_in_R: Tensor, w_out_RC: Tensor, b_out_C: Tensor, grid_hw: Optional[tuple] = None
) -> Tensor:
    """Cell by cell of the images of a grid, by default one line; a neighbour outside it is 0."""
    height, width = grid_hw or (1, len(x_NC))
    w_33CR = w_in_DR.view(x_NC.shape[1], 3, 3, -1).permute(1, 2, 0, 3)
    rows = []
    for n in range(len(x_NC)):
        image, cell = divmod(n, height * width)
        y, x = divmod(cell, width)
        hidden_R = b_in_R
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    neighbour_C = x_NC[image * height * width + (y + dy) * width + x + dx]
                    hidden_R = hidden_R + neighbour_C @ w_33CR[dy + 1, dx + 1]
        rows.append(hidden_R @ w_out_RC + b_out_C)
    return torch.stack(rows)


EXPERT = {"ffn": fine_expert, "lora": low_rank, "conv_lora": low_rank_convolution, "rank_one": low_rank}


def scores(logits_E: Tensor, config: Experts) -> Tensor:
    return torch.sigmoid(logits_E) if config.score == "sigmoid" else torch.softmax(logits_E, 0)


def select(logits_E: Tensor, config: Experts, groups: int, bias_E: Optional[Tensor]) -> list[int]:
    """The experts of a token, best first; `groups` of experts, of which it may go to `config.max_ranks_per_token`."""
    score_E = scores(logits_E, config)
    by = [score.item() + (0 if bias_E is None else bias_E[e].item()) for e, score in enumerate(score_E)]
    size = len(by) // groups
    members = [range(g * size, (g + 1) * size) for g in range(groups)]
    members.sort(key=lambda group: -max(by[e] for e in group))
    allowed = [e for group in members[: config.max_ranks_per_token or groups] for e in group]
    return sorted(allowed, key=lambda e: -by[e])[: config.top_k]


def gates(logits: Tensor, chosen: list[int], config: Experts) -> list[Tensor]:
    """Of the chosen experts, and after them of the shared ones, whose logits come last."""
    if config.shared_gate == "joint":
        return list(torch.softmax(torch.cat([logits[chosen], logits[config.routed :]]), 0))
    score_E = scores(logits, config)
    kept = sum(score_E[e] for e in chosen) if config.renormalise else 1
    return [score_E[e] / kept for e in chosen]


def looked_at(x_NC: Tensor, n: int, config: Experts, images: int) -> Tensor:
    """What the experts of token n are chosen by: itself, or the mean of its image."""
    if config.router == "token":
        return x_NC[n]
    size = len(x_NC) // images
    first = n // size * size
    return sum(x_NC[first : first + size]) / size


def route(
    x_NC: Tensor, router: Tensor, config: Experts, groups: int = 1, images: int = 1, bias_E: Optional[Tensor] = None
) -> list[list[tuple[int, Tensor]]]:
    """For each token of a task its (expert, gate) pairs; a capacity takes those away that find their expert full."""
    tokens = []
    for n in range(len(x_NC)):
        logits = looked_at(x_NC, n, config, images) @ router
        chosen = select(logits[: config.routed], config, groups, bias_E)
        tokens.append(list(zip(chosen, gates(logits, chosen, config))))
    if config.capacity_factor and tokens:
        size = len(tokens) // images
        capacity = math.ceil(round(config.capacity_factor * config.top_k * size / config.routed, 6))
        for image in range(images):
            mine = range(image * size, (image + 1) * size)
            for e in range(config.routed):
                wanting = sorted((-gate.item(), n) for n in mine for expert, gate in tokens[n] if expert == e)
                for _, n in wanting[capacity:]:
                    tokens[n] = [pair for pair in tokens[n] if pair[0] != e]
    return tokens


def routed_experts(
    x_TNC: Tensor,
    router_TCE: Tensor,
    weights: dict,
    config: Experts,
    groups: int = 1,
    images: int = 1,
    bias_TE: Optional[Tensor] = None,
) -> Tensor:
    """`weights[task, expert]` = the tensors of one fine expert; of no task where all share one bank."""
    out, expert = torch.zeros_like(x_TNC), EXPERT[config.kind]
    for t, x_NC in enumerate(x_TNC):
        bias_E = None if bias_TE is None else bias_TE[t]
        for n, pairs in enumerate(route(x_NC, router_TCE[t], config, groups, images, bias_E)):
            for e, gate in pairs:
                owner = None if config.bank == "shared" else t
                out[t, n] = out[t, n] + gate * expert(x_NC[n], *weights[owner, e])
    return out
