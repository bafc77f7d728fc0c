"""The multi-task baseline: one feature for all tasks, and a head per task on it.

    a = aggregator(levels);  y_t = head_t(a), or head_t(mixer_t(a)) with `mixer_depth` > 0

Tasks have nothing else in common, and nothing goes from task to task. It is FGMoE without its blocks, drawn from other
seeds: the aggregator from the tasks that share it, a mixer and a head from their task, so that with one task it is what
`single_task` has for that task.

Legend: B images, C channels, h x w grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Decoder, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.columns import create_aggregator, create_own
from fgmoe_dist.decoders.parts.grid import GridSettings
from fgmoe_dist.tasks import Task


class MultiTaskSettings(GridSettings):
    kind: Literal["multi_task"] = Field("multi_task", description="plain heads on one feature that all tasks share")
    mixer_depth: int = Field(0, ge=0, le=1000, description="deformable mixer layers a task, before its head")

    @property
    def shares_feature(self) -> bool:
        return True


class MultiTask(Decoder):
    Settings = MultiTaskSettings

    def __init__(self, settings: MultiTaskSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        self.grid_hw = settings.grid(around.image_size)
        self.aggregator = create_aggregator(levels, settings.channels, tasks, around.seed)
        self.mixers, self.heads = create_own(settings.channels, settings.mixer_depth, tasks, around.seed)

    def forward(self, levels: list[Tensor]) -> Output:
        a_BChw, _ = self.aggregator(levels, self.grid_hw)
        own = zip(self.tasks, self.mixers, self.heads)
        predictions = {task.name: head(mixer(a_BChw), self.size_hw) for task, mixer, head in own}
        return Output(predictions, feature=a_BChw)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.mixers.parameters()
        yield from self.heads.parameters()
