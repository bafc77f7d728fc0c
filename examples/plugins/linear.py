"""A decoder without experts: the encoder's levels in one width, added up, and a head for each task."""

from typing import Literal

from pydantic import Field
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import Decoder, DecoderSettings, Output
from fgmoe_dist.decoders.parts.heads import Head


class LinearSettings(DecoderSettings):
    kind: Literal["linear"] = Field("linear", description="which decoder")
    channels: int = Field(64, ge=1, description="width of the feature that all tasks share")


class Linear(Decoder):
    Settings = LinearSettings

    def __init__(self, settings, levels, tasks, around):
        super().__init__(settings, levels, tasks, around)
        self.project = nn.ModuleList(nn.Conv2d(channels, settings.channels, 1) for channels in levels.channels)
        self.heads = nn.ModuleList(Head(settings.channels, task.channels) for task in tasks)

    def forward(self, levels):
        levels = [level.to(self.project[0].weight.dtype) for level in levels]  # the encoder's precision is its own
        projected = [project(level) for project, level in zip(self.project, levels)]
        grid_hw = max(level.shape[2:] for level in projected)
        x_BChw = F.gelu(sum(F.interpolate(level, grid_hw, mode="bilinear") for level in projected))
        return Output({task.name: head(x_BChw, self.size_hw) for task, head in zip(self.tasks, self.heads)})

    def own_parameters(self):
        return self.heads.parameters()


DECODERS["linear"] = Linear
