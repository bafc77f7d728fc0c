"""A stage of InvPT's decoder (ECCV 2022, arXiv 2203.07997): all tasks' tokens attend to each other, ever finer.

    x_t = U_t(x_t of the stage before, up-sampled) + skip            but in the first stage
    q_t = W_q norm(D_t * y_t), D a depthwise 3x3 convolution of stride 2
    k_t, v_t = W_k, W_v of y_t averaged over cells
    A   = q k^T / sqrt(C), over the tokens of all tasks;  A = F [A; A of the stage before, up-sampled]     the message
    x_t = x_t + W_o (softmax(A) v)_t, up-sampled;  x_t = x_t + MLP(norm(x_t))

y is the layer norm of x. Each head divides by sqrt of the whole width and not of its own, as the published results
were obtained. Cells are averaged until the keys of every stage lie on one coarse grid: so scores of two stages differ
in their queries' grid alone, and a 1x1 convolution F over heads can join them.

Legend: B images, T tasks, C channels, h x w grid of a stage, q x r that of its queries, Q queries and S keys of all
tasks, H heads, d = C / H, X = H S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.layers import LayerNorm2d, resize

QUERY_STRIDE = 2


class UpSampling(nn.Module):
    """U_t: two 3x3 convolutions of dilation 2, each with norm and ReLU, on a finer grid."""

    def __init__(self, given: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential()
        for width in (given, channels):
            self.layers.append(nn.Conv2d(width, channels, 3, padding=2, dilation=2, bias=False))
            self.layers.extend([LayerNorm2d(channels), nn.ReLU()])

    def forward(self, x_BChw: Tensor, grid_hw: Sequence[int]) -> Tensor:
        return self.layers(resize(x_BChw, grid_hw))


class CrossTaskAttention(nn.Module):
    """Every token of every task asks those of all tasks, averaged over `cells` x `cells` cells."""

    def __init__(self, channels: int, heads: int, tasks: int, cells: int, takes_message: bool):
        super().__init__()
        self.heads, self.cells = heads, cells
        self.ask = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, stride=QUERY_STRIDE, padding=1, groups=channels, bias=False),
                LayerNorm2d(channels),
            )
            for _ in range(tasks)
        )
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.project = nn.Linear(channels, channels)
        self.join = nn.Conv2d(2 * heads, heads, 1) if takes_message else None

    def forward(self, y_T: Sequence[Tensor], message_TBXqr: Optional[Tensor]) -> tuple[list[Tensor], Tensor]:
        """`[B, C, q, r]` for each task, and the scores as a message to the next stage."""
        asked_T = [ask(y_BChw) for ask, y_BChw in zip(self.ask, y_T)]
        averaged_T = [F.avg_pool2d(y_BChw, self.cells, ceil_mode=True, count_include_pad=False) for y_BChw in y_T]
        query_BHQd = self._split(self.query(_tokens(asked_T)))
        key_BHSd, value_BHSd = (self._split(of(_tokens(averaged_T))) for of in (self.key, self.value))
        grid_hw, channels = asked_T[0].shape[2:], asked_T[0].shape[1]
        score_BHQS = query_BHQd @ key_BHSd.transpose(2, 3) * channels**-0.5
        if self.join is not None:
            score_BHQS = self.join(torch.cat([score_BHQS, self._received(message_TBXqr, grid_hw)], dim=1))
        mixed_BQC = (score_BHQS.softmax(-1) @ value_BHSd).transpose(1, 2).flatten(2)
        return _maps(self.project(mixed_BQC), len(y_T), grid_hw), self._message(score_BHQS, len(y_T), grid_hw)

    def _split(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _message(self, score_BHQS: Tensor, tasks: int, grid_hw: Sequence[int]) -> Tensor:
        """The scores as maps over the queries' grid: `message_TBXqr`."""
        maps_BHSTqr = score_BHQS.transpose(2, 3).unflatten(3, (tasks, *grid_hw))
        return maps_BHSTqr.permute(3, 0, 1, 2, 4, 5).flatten(2, 3)

    def _received(self, message_TBXqr: Tensor, grid_hw: Sequence[int]) -> Tensor:
        """A message's scores for queries on this grid, `score_BHQS`."""
        finer_TBXqr = resize(message_TBXqr.flatten(0, 1), grid_hw).unflatten(0, message_TBXqr.shape[:2])
        return finer_TBXqr.unflatten(2, (self.heads, -1)).permute(1, 2, 0, 4, 5, 3).flatten(2, 4)


class Stage(nn.Module):
    """Attention and MLP over all tasks' maps, each added to what it reads."""

    def __init__(self, channels: int, heads: int, tasks: int, cells: int, mlp_ratio: int, takes_message: bool):
        super().__init__()
        self.norm, self.mlp_norm = LayerNorm2d(channels), LayerNorm2d(channels)
        self.attention = CrossTaskAttention(channels, heads, tasks, cells, takes_message)
        hidden = mlp_ratio * channels
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, x_T: Sequence[Tensor], message: Optional[Tensor]) -> tuple[list[Tensor], Tensor]:
        mixed_T, message = self.attention([self.norm(x_BChw) for x_BChw in x_T], message)
        x_T = [x_BChw + resize(mixed, x_BChw.shape[2:]) for x_BChw, mixed in zip(x_T, mixed_T)]
        return [x_BChw + self.mlp(self.mlp_norm(x_BChw)) for x_BChw in x_T], message


def _tokens(x_T: Sequence[Tensor]) -> Tensor:
    """`[B, T h w, C]`: one task's tokens after another's."""
    return torch.cat([x_BChw.flatten(2) for x_BChw in x_T], dim=2).transpose(1, 2)


def _maps(x_BNC: Tensor, tasks: int, grid_hw: Sequence[int]) -> list[Tensor]:
    """The other way: `[B, C, h, w]` for each task."""
    return list(x_BNC.transpose(1, 2).unflatten(2, (tasks, *grid_hw)).unbind(2))
