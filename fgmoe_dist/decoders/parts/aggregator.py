"""Feature aggregator: every tapped encoder level up-sampled to the decoder's grid, concatenated, projected.

`linear`: a 1x1 convolution and a bilinear resize commute, so each level is projected on its own small grid first; the
sum of the resized projections is the projection of the resized concatenation, for a fraction of the multiplications.
Options that a task has for itself: weights of the levels, and a low-rank adapter beside the shared projection.

`conv`, the published code of DeGMix: 3x3 convolutions on each level's own grid, and again on the decoder's.

Legend: B images, C channels, L levels, h x w decoder grid, T tasks, r adapter rank.
"""

from __future__ import annotations

from typing import Iterator, Literal, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.layers import LayerNorm2d, resize
from fgmoe_dist.decoders.parts.residual import conv_norm

Form = Literal["linear", "conv"]


class Aggregator(nn.Module):
    def __init__(
        self,
        level_channels: Sequence[int],
        channels: int,
        tasks: int,
        adapter_rank: int = 0,
        level_weights: bool = False,
    ):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in level_channels)
        self.norm = LayerNorm2d(channels)
        self.level_weights_TL = nn.Parameter(torch.ones(tasks, len(level_channels))) if level_weights else None
        self.down = self.up = None
        if adapter_rank:
            self.down = nn.ModuleList(nn.Conv2d(c, tasks * adapter_rank, 1, bias=False) for c in level_channels)
            self.up = nn.Conv2d(tasks * adapter_rank, tasks * channels, 1, bias=False, groups=tasks)
            nn.init.zeros_(self.up.weight)  # every task starts from the shared feature
        self.tasks = tasks

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: what it weighs levels by, and its adapter."""
        if self.level_weights_TL is not None:
            yield self.level_weights_TL
        for module in filter(None, (self.down, self.up)):
            yield from module.parameters()

    def forward(self, levels: list[Tensor], grid_hw: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """The shared aggregated feature `a_BChw`, and one feature a task (the same tensor where tasks have no own)."""
        levels = [level.to(self.norm.weight.dtype) for level in levels]  # the encoder's precision is its own
        projected = [resize(project(level), grid_hw) for project, level in zip(self.project, levels)]
        shared_BChw = sum(projected)
        own_TBChw = [shared_BChw] * self.tasks
        if self.level_weights_TL is not None:
            own_TBChw = [sum(w * p for w, p in zip(weights_L, projected)) for weights_L in self.level_weights_TL]
        if self.down is not None:
            low_BRhw = sum(resize(down(level), grid_hw) for down, level in zip(self.down, levels))
            own_TBChw = [own + extra for own, extra in zip(own_TBChw, self.up(low_BRhw).chunk(self.tasks, dim=1))]
        a_BChw = F.gelu(self.norm(shared_BChw))
        if own_TBChw[0] is shared_BChw:
            return a_BChw, [a_BChw] * self.tasks
        return a_BChw, [F.gelu(self.norm(own)) for own in own_TBChw]


class ConvAggregator(nn.Module):
    """`a = conv2([resize(conv2(level_1)); ...; resize(conv2(level_L))])`.

    conv2 is twice a 3x3 convolution, norm and ReLU: to C / 2 channels on a level's grid, to C on the decoder's.
    """

    def __init__(self, level_channels: Sequence[int], channels: int, tasks: int):
        super().__init__()
        narrow = channels // 2
        self.levels = nn.ModuleList(_two_convolutions(c, narrow) for c in level_channels)
        self.join = _two_convolutions(narrow * len(level_channels), channels)
        self.tasks = tasks

    def forward(self, levels: list[Tensor], grid_hw: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """As `Aggregator` answers; no task has a feature of its own."""
        levels = [level.to(self.join[0].weight.dtype) for level in levels]  # the encoder's precision is its own
        narrow = [resize(convolve(level), grid_hw) for convolve, level in zip(self.levels, levels)]
        a_BChw = self.join(torch.cat(narrow, dim=1))
        return a_BChw, [a_BChw] * self.tasks


def _two_convolutions(given: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(given, channels, 3), nn.ReLU(), *conv_norm(channels, channels, 3), nn.ReLU())


def feature_aggregator(
    form: Form, level_channels: Sequence[int], channels: int, tasks: int, **own: int | bool
) -> nn.Module:
    """`own` is what `linear` has for each task."""
    if form == "conv":
        return ConvAggregator(level_channels, channels, tasks)
    return Aggregator(level_channels, channels, tasks, **own)
