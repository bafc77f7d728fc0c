"""TaskExpert (Ye and Xu, ICCV 2023, arXiv 2307.15324): our own reading of the paper, which has no public code.

What the paper says in words: experts decompose a tapped level of the encoder into several features that belong to no
task; each task's gates assemble its own feature from them, anew at every token; a memory of each task's feature goes
from tap to tap, is updated at each, and is one more expert to assemble from; the last memory predicts. As equations,
for each tap l and task t:

    x_l   = 1x1 of the level;  e_li = GELU(norm(3x3 of x_l)),  i = 1 .. E             experts, for all tasks
    g_lt  = softmax(W_lt [x_l; m_t])                             of E gates, and one more for the memory if there is any
    f_lt  = sum_i g_lti e_li + g_lt,E+1 m_t
    m_t   = f_lt at the first tap, norm_lt(m_t + f_lt) at later ones
    y_t   = head of the last m_t

What we decided, since no equation could be read: the sizes; that gates are one linear map of the tap and the memory,
token by token, and dense; that a memory is updated by a residual sum and a norm. With `memory` off the gates see the
tap alone and do not read the memory, which still adds up what the taps give.
What differs by intent: the encoder is frozen; layer norm in the place of batch norm (parts/layers.py).

Legend: B images, C channels, h x w grid of the experts, K outputs of a task, H x W input, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Optional

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.base import Decoder, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.grid import GridSettings
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.decoders.parts.layers import LayerNorm2d, resize
from fgmoe_dist.tasks import Task


class TaskExpertSettings(GridSettings):
    kind: Literal["taskexpert"] = Field(
        "taskexpert", description="experts at every tap, and a memory of each task; our own reading of the paper"
    )
    experts: int = Field(5, ge=1, le=2**10, description="E, experts at a tap, which all tasks share")
    expert_stride: int = Field(16, ge=1, le=65536, description="pixels of the input a cell of theirs stands for")
    memory: bool = Field(True, description="a task's memory is one more expert at every tap but the first")

    def expert_grid(self, size_hw: Sequence[int]) -> tuple[int, int]:
        """h x w of the experts' cells."""
        return tuple(-(-side // self.expert_stride) for side in size_hw)


class MemorialMixture(nn.Module):
    """One tap: what its experts make of it, and each task's memory after it."""

    def __init__(self, given: int, channels: int, experts: int, tasks: int, first: bool, reads_memory: bool):
        super().__init__()
        self.channels, self.reads_memory = channels, reads_memory and not first
        self.fuse = nn.Conv2d(given, channels, 1)
        self.experts = nn.Conv2d(channels, experts * channels, 3, padding=1, bias=False)  # side by side
        self.norms = nn.ModuleList(LayerNorm2d(channels) for _ in range(experts))
        seen, gates = (2 * channels, experts + 1) if self.reads_memory else (channels, experts)
        self.gates = nn.ModuleList(nn.Conv2d(seen, gates, 1) for _ in range(tasks))
        self.update = None if first else nn.ModuleList(LayerNorm2d(channels) for _ in range(tasks))

    def forward(self, level_BChw: Tensor, grid_hw: Sequence[int], memory_T: Optional[Sequence[Tensor]]) -> list[Tensor]:
        x_BChw = resize(self.fuse(level_BChw.to(self.fuse.weight.dtype)), grid_hw)
        parts = self.experts(x_BChw).split(self.channels, dim=1)
        features_E = [F.gelu(norm(part)) for norm, part in zip(self.norms, parts)]
        assembled_T = [self._assemble(task, x_BChw, features_E, memory_T) for task in range(len(self.gates))]
        if self.update is None:
            return assembled_T
        return [update(m + f) for update, m, f in zip(self.update, memory_T, assembled_T)]

    def _assemble(self, task: int, x_BChw: Tensor, features: list[Tensor], memory_T: Optional[Sequence]) -> Tensor:
        seen = x_BChw
        if self.reads_memory:
            seen, features = torch.cat([x_BChw, memory_T[task]], dim=1), [*features, memory_T[task]]
        gate_BEhw = self.gates[task](seen).softmax(1)
        return sum(gate_BEhw[:, expert, None] * feature for expert, feature in enumerate(features))

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own."""
        yield from self.gates.parameters()
        if self.update is not None:
            yield from self.update.parameters()


class TaskExpert(Decoder):
    Settings = TaskExpertSettings

    def __init__(self, settings: TaskExpertSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels, count = settings.channels, len(tasks)
        self.grid_hw, self.expert_hw = settings.grid(around.image_size), settings.expert_grid(around.image_size)
        self.taps = nn.ModuleList(
            MemorialMixture(given, channels, settings.experts, count, tap == 0, settings.memory)
            for tap, given in enumerate(levels.channels)
        )
        self.heads = nn.ModuleList(Head(channels, task.channels) for task in tasks)

    def forward(self, levels: list[Tensor]) -> Output:
        memory_T = None
        for tap, level in zip(self.taps, levels):
            memory_T = tap(level, self.expert_hw, memory_T)
        own = zip(self.tasks, self.heads, memory_T)
        return Output({task.name: head(resize(m, self.grid_hw), self.size_hw) for task, head, m in own})

    def describe(self) -> list[tuple[str, str]]:
        settings = self.settings
        besides = ", and its memory" if settings.memory else ""
        told = f"{settings.experts} at each of {len(self.taps)} taps, for all tasks; a token takes all of them{besides}"
        return [("experts", told)]

    def own_parameters(self) -> Iterator[nn.Parameter]:
        for tap in self.taps:
            yield from tap.own_parameters()
        yield from self.heads.parameters()
