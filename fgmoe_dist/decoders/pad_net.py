"""PAD-Net (Xu et al., arXiv 1805.04409), as the survey of arXiv 2004.13379 compares it.

    F_t = two bottlenecks of the shared feature; a preliminary prediction from it (1x1) has the task's loss as well
    D_t = F_t + sum_{a != t} sigmoid(A_ta * F_a) . (V_ta * F_a)
    y_t = 1x1 of two bottlenecks of D_t

What differs, and why:
- The shared feature is the aggregated one, at stride 4, since the encoder is frozen and a transformer; the survey takes
  the last feature of a dilated ResNet at stride 8.
- Layer norm in the place of batch norm, as everywhere here (parts/layers.py).
- Features are distilled, not the preliminary predictions themselves: so the survey has it. The paper compares several
  ways; what is computed here is the survey's form alone.

Legend: B images, C channels, h x w grid, K outputs of a task, H x W input, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Decoder, Intermediate, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.aggregator import Aggregator
from fgmoe_dist.decoders.parts.distillation import Distillation, DistillationSettings, Preliminary
from fgmoe_dist.decoders.parts.heads import to_input
from fgmoe_dist.decoders.parts.residual import Bottleneck, two_blocks
from fgmoe_dist.tasks import Task


class PADNetSettings(DistillationSettings):
    kind: Literal["pad_net"] = Field("pad_net", description="preliminary predictions, then each task asks the others")

    @property
    def shares_feature(self) -> bool:
        return True


class PADNet(Decoder):
    Settings = PADNetSettings

    def __init__(self, settings: PADNetSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels = settings.channels
        self.grid_hw = settings.grid(around.image_size)
        self.aggregator = Aggregator(levels.channels, channels, 1)
        self.preliminary = Preliminary(channels, channels, tasks, Bottleneck)
        self.distillation = Distillation(channels, len(tasks))
        self.heads = nn.ModuleList(
            nn.Sequential(two_blocks(Bottleneck, channels, channels), nn.Conv2d(channels, task.channels, 1))
            for task in tasks
        )

    def forward(self, levels: list[Tensor]) -> Output:
        a_BChw, _ = self.aggregator(levels, self.grid_hw)
        features_T, first = self.preliminary([a_BChw] * len(self.tasks))
        own = zip(self.tasks, self.heads, self.distillation(features_T))
        predictions = {task.name: to_input(head(x_BChw), self.size_hw) for task, head, x_BChw in own}
        intermediate = Intermediate("preliminary", self.settings.prediction_weight, first)
        return Output(predictions, intermediate=[intermediate], feature=a_BChw)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.preliminary.own_parameters()
        yield from self.distillation.own_parameters()
        yield from self.heads.parameters()
