"""A network of its own for each task, side by side on the same levels: aggregator, mixer layers, head.

What a task's network starts from is decided by (run seed, task) alone, whatever other tasks there are.

Legend: B images, C channels, h x w grid, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Decoder, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.aggregator import Aggregator
from fgmoe_dist.decoders.parts.grid import GridSettings
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.decoders.parts.mixer import deformable_mixer
from fgmoe_dist.decoders.parts.seeding import drawn_from
from fgmoe_dist.tasks import Task


def create_aggregator(levels: Levels, channels: int, tasks: Sequence[Task], seed: int) -> Aggregator:
    """The one aggregator of all `tasks`; of a single task, what that task starts from anywhere."""
    with drawn_from(seed, "aggregator", *(task.name for task in tasks)):
        return Aggregator(levels.channels, channels, 1)


def create_own(channels: int, mixer_depth: int, tasks: Sequence[Task], seed: int) -> tuple[nn.ModuleList, ...]:
    """For each task a mixer, a sequence of so many layers, and a head."""
    mixers, heads = nn.ModuleList(), nn.ModuleList()
    for task in tasks:
        with drawn_from(seed, "own", task.name):
            mixers.append(deformable_mixer(channels, mixer_depth))
            heads.append(Head(channels, task.channels))
    return mixers, heads


class ColumnSettings(GridSettings):
    mixer_depth: int = Field(2, ge=0, le=1000, description="deformable mixer layers a task")


class MixingSettings(ColumnSettings):
    alpha: float = Field(0.9, description="weight of a task's own feature at first")
    beta: float = Field(0.1, description="weight of each other task's feature at first")


class Exchange(nn.Module):
    """What lets features cross over from network to network: here nothing does.

    One stands behind the aggregators, and one behind each mixer layer.
    """

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those which one task alone trains where heads follow."""
        return iter(())

    def forward(self, x_T: list[Tensor]) -> list[Tensor]:
        """A feature `[B, C, h, w]` for each task from those of all tasks."""
        return x_T


class Mixing(Exchange):
    """The feature of task i becomes a learned mixture of all, whose weights are task i's own."""

    def own_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()


class Columns(Decoder):
    """Networks side by side; a subclass says what they exchange."""

    def __init__(self, settings: ColumnSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels, depth, seed = settings.channels, settings.mixer_depth, around.seed
        self.grid_hw = settings.grid(around.image_size)
        self.aggregators = nn.ModuleList(create_aggregator(levels, channels, [task], seed) for task in tasks)
        self.mixers, self.heads = create_own(channels, depth, tasks, seed)
        self.exchanges = nn.ModuleList(self.create_exchange() for _ in range(1 + depth))

    def create_exchange(self) -> Exchange:
        return Exchange()

    def forward(self, levels: list[Tensor]) -> Output:
        x_T = [aggregator(levels, self.grid_hw)[0] for aggregator in self.aggregators]
        x_T = self.exchanges[0](x_T)
        for depth, exchange in enumerate(self.exchanges[1:]):
            x_T = exchange([mixer[depth](x_BChw) for mixer, x_BChw in zip(self.mixers, x_T)])
        return Output({task.name: head(x, self.size_hw) for task, head, x in zip(self.tasks, self.heads, x_T)})

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """What one task alone trains: whatever comes before the last exchange, the losses of all tasks reach."""
        yield from self.exchanges[-1].own_parameters()
        yield from self.heads.parameters()


class MixedColumns(Columns):
    """Networks whose features are mixed; `mixing(tasks, channels, alpha, beta)` makes a `Mixing`."""

    mixing: ClassVar[type[Mixing]]

    def create_exchange(self) -> Mixing:
        settings = self.settings
        return self.mixing(len(self.tasks), settings.channels, settings.alpha, settings.beta)
