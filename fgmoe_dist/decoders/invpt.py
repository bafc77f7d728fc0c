"""InvPT (Ye and Xu, ECCV 2022, arXiv 2203.07997): an inverted pyramid of stages in which all tasks see each other.

From the last tap, on a grid of `coarsest` pixels a cell:

    F_t = two 3x3 convolutions with norm and ReLU
    p_t = 1x1 of F_t, a preliminary prediction, which has the task's loss as well
    x_t = 1x1 of [F_t; p_t]
    each stage: parts/inverted.py; from one to the next the grid is twice as fine and the width halves, and an earlier
                tap is added (1x1, resized): the earlier, the later the stage
    y_t = 1x1, of 3x3 with norm and ReLU, of the sum over stages of R_st norm_s(x_st), resized to `stride`

norm_s is one layer norm over the channels of all tasks together, R_st a 1x1 convolution to the first stage's width.

What differs, and why:
- The encoder is frozen; the published one is trained, so that its numbers are not to be expected.
- Layer norm in the place of batch norm, as everywhere here (parts/layers.py).
- Taps join by a 1x1 convolution and a bilinear resize, whatever the encoder; the published code has (transposed)
  convolutions that bring a plain transformer's taps to scales of their own.
- The published settings name a stochastic depth of 0.15, which its code never applies with one block a stage; here is
  none.

Legend: B images, C channels, h x w grid of a stage, K outputs of a task, H x W input, T tasks, S stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Decoder, Intermediate, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.distillation import DistillationSettings
from fgmoe_dist.decoders.parts.heads import to_input
from fgmoe_dist.decoders.parts.inverted import QUERY_STRIDE, Stage, UpSampling
from fgmoe_dist.decoders.parts.layers import LayerNorm2d, resize
from fgmoe_dist.tasks import Task


class InvPTSettings(DistillationSettings):
    kind: Literal["invpt"] = Field("invpt", description="a pyramid of stages in which all tasks' tokens attend")
    channels: int = Field(576, ge=8, le=2**20, description="C, width of a task's feature in the first stage")
    features: int = Field(512, ge=1, le=2**20, description="width of what a preliminary prediction is made from")
    stages: int = Field(3, ge=1, le=8, description="S; each is twice as fine as the one before, and half as wide")
    coarsest: int = Field(32, ge=1, le=65536, description="pixels of the input a cell of the first stage stands for")
    heads: int = Field(2, ge=1, le=2**10, description="attention heads of a stage")
    mlp_ratio: int = Field(4, ge=1, le=2**10, description="hidden units of a stage's MLP a channel")

    def widths(self) -> list[int]:
        return [self.channels // 2**stage for stage in range(self.stages)]

    def grids(self, size_hw: Sequence[int]) -> list[tuple[int, int]]:
        """h x w of each stage, the coarsest first."""
        return [tuple(-(-side * 2**stage // self.coarsest) for side in size_hw) for stage in range(self.stages)]

    def conflicts(self, around: Surroundings) -> list[str]:
        found, parts = super().conflicts(around), self.heads * 2 ** (self.stages - 1)
        if self.channels % parts:
            found.append(
                f"decoder.channels={self.channels} halves from stage to stage and is split by heads; make it a multiple"
                f" of {parts}, by decoder.stages={self.stages} and decoder.heads={self.heads}"
            )
        return found


class Preliminary(nn.Module):
    """A task's own feature of the last tap, its preliminary prediction, and both in one."""

    def __init__(self, given: int, features: int, outputs: int, channels: int):
        super().__init__()
        self.feature = nn.Sequential()
        for width, answer in ((given, given), (given, features)):
            self.feature.extend([nn.Conv2d(width, answer, 3, padding=1), LayerNorm2d(answer), nn.ReLU()])
        self.predict = nn.Conv2d(features, outputs, 1)
        self.mix = nn.Conv2d(features + outputs, channels, 1)

    def forward(self, x_BChw: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.feature(x_BChw)
        first_BKhw = self.predict(feature)
        return self.mix(torch.cat([feature, first_BKhw], dim=1)), first_BKhw.float()


class Gathering(nn.Module):
    """What a stage hands to the heads: `R_st norm_s(x_st)` for each task."""

    def __init__(self, width: int, channels: int, tasks: int):
        super().__init__()
        self.norm = LayerNorm2d(tasks * width)
        self.reduce = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(tasks))

    def forward(self, x_T: Sequence[Tensor]) -> list[Tensor]:
        normed_T = self.norm(torch.cat(list(x_T), dim=1)).chunk(len(x_T), dim=1)
        return [reduce(x_BChw) for reduce, x_BChw in zip(self.reduce, normed_T)]


class InvPT(Decoder):
    Settings = InvPTSettings

    def __init__(self, settings: InvPTSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        widths, count = settings.widths(), len(tasks)
        self.grid_hw, self.grids = settings.grid(around.image_size), settings.grids(around.image_size)
        self.preliminary = nn.ModuleList(
            Preliminary(levels.channels[-1], settings.features, task.channels, widths[0]) for task in tasks
        )
        # The last stage takes the first tap, the one before it the second, and so on.
        self.skips = [min(settings.stages - 1 - stage, len(levels.channels) - 1) for stage in range(1, settings.stages)]
        self.skip = nn.ModuleList(nn.Conv2d(levels.channels[tap], w, 1) for tap, w in zip(self.skips, widths[1:]))
        self.up = nn.ModuleList(
            nn.ModuleList(UpSampling(given, width) for _ in tasks) for given, width in pairwise(widths)
        )
        self.stages = nn.ModuleList(
            Stage(width, settings.heads, count, QUERY_STRIDE * 2**stage, settings.mlp_ratio, stage > 0)
            for stage, width in enumerate(widths)
        )
        self.gathering = nn.ModuleList(Gathering(width, widths[0], count) for width in widths)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[0], widths[0], 3, padding=1),
                LayerNorm2d(widths[0]),
                nn.ReLU(),
                nn.Conv2d(widths[0], task.channels, 1),
            )
            for task in tasks
        )

    def forward(self, levels: list[Tensor]) -> Output:
        dtype = self.heads[0][0].weight.dtype
        levels = [level.to(dtype) for level in levels]  # the encoder's precision is its own
        last = resize(levels[-1], self.grids[0])
        x_T, first_T = zip(*(preliminary(last) for preliminary in self.preliminary))
        gathered_ST, message = [], None
        for index, (stage, gather) in enumerate(zip(self.stages, self.gathering)):
            if index:
                skip = resize(self.skip[index - 1](levels[self.skips[index - 1]]), self.grids[index])
                x_T = [up(x_BChw, self.grids[index]) + skip for up, x_BChw in zip(self.up[index - 1], x_T)]
            x_T, message = stage(x_T, message)
            gathered_ST.append(gather(x_T))
        own = zip(self.tasks, self.heads, zip(*gathered_ST))
        predictions = {task.name: self._predict(head, scales_S) for task, head, scales_S in own}
        first = {task.name: prediction for task, prediction in zip(self.tasks, first_T)}
        return Output(predictions, intermediate=[Intermediate("preliminary", self.settings.prediction_weight, first)])

    def _predict(self, head: nn.Module, scales_S: Sequence[Tensor]) -> Tensor:
        return to_input(head(sum(resize(x_BChw, self.grid_hw) for x_BChw in scales_S)), self.size_hw)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """What comes after the attention of a stage and its norm: all before, every task reads."""
        for gather in self.gathering:
            yield from gather.reduce.parameters()
        yield from self.heads.parameters()
