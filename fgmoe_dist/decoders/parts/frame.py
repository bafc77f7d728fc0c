"""What stands around the blocks of FGMoE, and of the dense decoder that it is compared with.

    a = aggregator(levels);  u_t = mixer_t(a)  ->  blocks on the tokens of all tasks  ->  y_t = head_t(u_t)

Legend: B images, C channels, h x w grid, T tasks, N = B h w tokens, K outputs of a task, H x W input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Decoder, Levels, Surroundings
from fgmoe_dist.decoders.parts.aggregator import Form, feature_aggregator
from fgmoe_dist.decoders.parts.grid import GridSettings
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.decoders.parts.mixer import Offsets, deformable_mixer
from fgmoe_dist.decoders.parts.tokens import to_maps, to_tokens
from fgmoe_dist.tasks import Task


class FrameSettings(GridSettings):
    aggregator: Form = Field(
        "linear",
        description="linear: the levels' projections, 1x1, added up; conv: 3x3 convolutions on each level's grid, and"
        " on the decoder's (DeGMix)",
    )
    mixer_depth: int = Field(2, ge=0, le=1000, description="deformable mixer layers a task")
    mixer_offsets: Offsets = Field(
        "shared",
        description="shared: a mixer layer samples all channels of a place at one offset; channel: each at its own, by"
        " feature and position (DeGMix)",
    )
    blocks: int = Field(1, ge=1, le=1000, description="stacked blocks")
    head_channels: int = Field(
        0, ge=0, le=2**20, description="width of each head's hidden layer; 0: decoder.channels (DeGMix: 180 of 256)"
    )

    @property
    def shares_feature(self) -> bool:
        return True


class Framed(Decoder):
    """A subclass says what a block is, and what it does with the tokens."""

    def __init__(self, settings: FrameSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels, depth = settings.channels, settings.mixer_depth
        self.experts, self.recompute, self.grid_hw = around.experts, around.recompute, settings.grid(around.image_size)
        self.aggregator = self.create_aggregator(levels.channels)
        self.mixers = nn.ModuleList(deformable_mixer(channels, depth, settings.mixer_offsets) for _ in tasks)
        self.blocks = nn.ModuleList(self.create_block(block, around) for block in range(settings.blocks))
        self.heads = nn.ModuleList(Head(channels, task.channels, settings.head_channels) for task in tasks)

    def create_aggregator(self, level_channels: Sequence[int]) -> nn.Module:
        return feature_aggregator(self.settings.aggregator, level_channels, self.settings.channels, len(self.tasks))

    @abstractmethod
    def create_block(self, block: int, around: Surroundings) -> nn.Module: ...

    def mixed(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Each task's tokens `u_TNC`, those of the aggregated feature `a_NC`, and that feature itself, `a_BChw`."""
        a_BChw, own_TBChw = self.aggregator(levels, self.grid_hw)
        u_TBChw = torch.stack([mixer(own) for mixer, own in zip(self.mixers, own_TBChw)])
        return to_tokens(u_TBChw), to_tokens(a_BChw), a_BChw

    def predictions(self, u_TNC: Tensor, images: int) -> dict[str, Tensor]:
        """`[B, K, H, W]` for each task."""
        features = to_maps(u_TNC, images, self.grid_hw)
        return {task.name: head(x, self.size_hw) for task, head, x in zip(self.tasks, self.heads, features)}

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """What its modules say, each of itself; of what comes before the last block only where blocks keep tasks apart.

        Else the losses of all tasks reach it.
        """
        parts = (self.blocks[-1], self.heads) if self.experts.crosses_tasks else (self,)
        for module in (module for part in parts for module in part.modules()):
            if module is not self and hasattr(module, "own_parameters"):
                yield from module.own_parameters()
