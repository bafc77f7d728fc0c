"""MTI-Net (Vandenhende et al., arXiv 2001.06902): PAD-Net's distillation at several scales, coarse ones helping finer.

From the coarsest scale S-1 to the finest, 0, where scale s has the stride `stride` 2^s:

    F_st = two residual blocks of [the scale's shared feature; P_{s+1,t} up-sampled]
    a preliminary prediction from F_st (1x1) has the task's loss as well
    D_st = F_st + sum_{a != t} sigmoid(A * F_sa) . (V * F_sa)                       distillation, of each scale
    P_st = F_st + SE_t(g([m_1 F_s1; ...; m_T F_sT])),  m = softmax_t f([F_s1; ...; F_sT])      propagation, for s > 0

    y_t = 1x1, norm, ReLU, 1x1 of [D_0t; D_1t up-sampled; ...]                      the head of HRNet

g is a residual block from all tasks' channels to those of one; f two such blocks of a fourth of all tasks' channels and
a 1x1 convolution; SE_t squeeze-and-excitation (Hu et al., arXiv 1709.01507) of the task's own.

What differs, and why:
- The scales of a frozen transformer are all alike, so that each scale has an aggregator of its own over all tapped
  levels, and all have one width; the paper has a pyramid encoder's own scales, of different widths.
- The softmax is over tasks, channel by channel, as the paper's words have it. The survey's published code takes it over
  T neighbouring channels of the concatenation, which mostly belong to one task.
- Layer norm in the place of batch norm, as everywhere here (parts/layers.py).

Legend: B images, C channels, h x w grid of a scale, S scales, K outputs of a task, H x W input, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Decoder, Intermediate, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.aggregator import Aggregator
from fgmoe_dist.decoders.parts.distillation import Distillation, DistillationSettings, Preliminary
from fgmoe_dist.decoders.parts.heads import to_input
from fgmoe_dist.decoders.parts.layers import resize
from fgmoe_dist.decoders.parts.residual import NARROWING, Basic, conv_norm, two_blocks
from fgmoe_dist.tasks import Task

SQUEEZE = 16  # an excitation's hidden layer has so many times fewer channels


class MTINetSettings(DistillationSettings):
    kind: Literal["mti_net"] = Field("mti_net", description="as pad_net, at several scales")
    scales: int = Field(4, ge=1, description="S, scales; each is half as fine as the one before")

    def grids(self, size_hw: Sequence[int]) -> list[tuple[int, int]]:
        """h x w of each scale, the finest first."""
        grid = self.grid(size_hw)
        return [tuple(-(-side // 2**scale) for side in grid) for scale in range(self.scales)]


class Excitation(nn.Module):
    """`x . sigmoid(W_2 ReLU(W_1 mean(x)))`, the mean over the pixels of an image."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // SQUEEZE)
        self.gate = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, x_BChw: Tensor) -> Tensor:
        return x_BChw * self.gate(x_BChw.mean((2, 3), keepdim=True)).sigmoid()


class Propagation(nn.Module):
    """P_t for each task from F_t of all: what a scale hands on to the next finer one."""

    def __init__(self, channels: int, tasks: int):
        super().__init__()
        together = tasks * channels
        narrow = together // NARROWING
        self.mask = nn.Sequential(two_blocks(Basic, together, narrow), nn.Conv2d(narrow, together, 1))
        self.reduce = Basic(together, channels)
        self.excite = nn.ModuleList(Excitation(channels) for _ in range(tasks))

    def forward(self, features_T: Sequence[Tensor]) -> list[Tensor]:
        x_BThw = torch.cat(list(features_T), dim=1)  # T stands for T C
        mask_BTChw = self.mask(x_BThw).unflatten(1, (len(self.excite), -1)).softmax(1)
        common_BChw = self.reduce(mask_BTChw.flatten(1, 2) * x_BThw)
        return [feature + excite(common_BChw) for feature, excite in zip(features_T, self.excite)]


class MTINet(Decoder):
    Settings = MTINetSettings

    def __init__(self, settings: MTINetSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels, count = settings.channels, len(tasks)
        self.grids = settings.grids(around.image_size)
        scales = range(len(self.grids))
        given = [2 * channels] * (len(self.grids) - 1) + [channels]  # nothing comes to the coarsest
        self.aggregators = nn.ModuleList(Aggregator(levels.channels, channels, 1) for _ in scales)
        self.preliminary = nn.ModuleList(Preliminary(given[scale], channels, tasks, Basic) for scale in scales)
        self.distillation = nn.ModuleList(Distillation(channels, count) for _ in scales)
        self.propagation = nn.ModuleList(Propagation(channels, count) for _ in scales[1:])
        wide = channels * len(self.grids)
        self.heads = nn.ModuleList(
            nn.Sequential(*conv_norm(wide, wide, 1), nn.ReLU(), nn.Conv2d(wide, task.channels, 1)) for task in tasks
        )

    def forward(self, levels: list[Tensor]) -> Output:
        came_T, distilled_ST, intermediate = [], [], []
        for scale in reversed(range(len(self.grids))):
            grid_hw = self.grids[scale]
            a_BChw, _ = self.aggregators[scale](levels, grid_hw)
            given_T = [torch.cat([a_BChw, resize(x, grid_hw)], dim=1) for x in came_T] or [a_BChw] * len(self.tasks)
            features_T, first = self.preliminary[scale](given_T)
            intermediate.append(Intermediate(f"scale{scale}", self.settings.prediction_weight, first))
            distilled_ST.append(self.distillation[scale](features_T))
            if scale:
                came_T = self.propagation[scale - 1](features_T)
        own = zip(self.tasks, self.heads, zip(*reversed(distilled_ST)))
        predictions = {task.name: self._predict(head, scales_S) for task, head, scales_S in own}
        return Output(predictions, intermediate=intermediate)

    def _predict(self, head: nn.Module, scales_S: Sequence[Tensor]) -> Tensor:
        return to_input(head(torch.cat([resize(x, self.grids[0]) for x in scales_S], dim=1)), self.size_hw)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """A task's feature and what is propagated of it, every task reads."""
        for module in (*self.preliminary, *self.distillation):
            yield from module.own_parameters()
        yield from self.heads.parameters()
