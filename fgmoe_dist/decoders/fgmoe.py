"""FGMoE (arXiv 2507.19077): levels -> aggregator -> a mixer per task -> FGMoE blocks -> a head per task.

Equations: `parts/block.py`. What the paper leaves open is configuration, here and in `experts/settings.py`.

Legend: B images, C channels, h x w decoder grid, H x W input, T tasks, N = B h w tokens, K outputs of a task, L blocks,
E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Auxiliary, Levels, Output, Routed, Surroundings
from fgmoe_dist.decoders.parts.aggregator import feature_aggregator
from fgmoe_dist.decoders.parts.block import FGMoEBlock
from fgmoe_dist.decoders.parts.frame import Framed, FrameSettings
from fgmoe_dist.decoders.parts.recompute import run
from fgmoe_dist.drawing.load_map import load_map
from fgmoe_dist.experts.balance import BalanceTerms, auxiliary_losses, figures_of, metrics
from fgmoe_dist.experts.diversity import diversity
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.experts.routers import Router
from fgmoe_dist.experts.routers.closing import open_to_fewest
from fgmoe_dist.experts.rules import conflicts as expert_conflicts
from fgmoe_dist.experts.rules import kept_conflicts
from fgmoe_dist.experts.unrouted import Unrouted
from fgmoe_dist.tasks import Task


class FGMoESettings(FrameSettings):
    kind: Literal["fgmoe"] = Field("fgmoe", description="which decoder: fgmoe, or another that is registered")
    adapter_rank: int = Field(
        0, ge=0, le=2**20, description="rank of each task's low-rank adapter beside the aggregator; 0: none"
    )
    level_weights: bool = Field(False, description="each task weighs the tapped encoder levels for itself")

    sections: ClassVar[tuple[str, ...]] = ("experts",)

    @property
    def shares_feature(self) -> bool:
        return not (self.adapter_rank or self.level_weights)

    def conflicts(self, around: Surroundings) -> list[str]:
        experts = around.experts
        found = expert_conflicts(experts, self.channels, around.ep_size, around.precision)
        fewest = open_to_fewest(experts, len(around.tasks), around.seed, self.blocks) if experts.closed_share else None
        if fewest is not None and fewest < experts.top_k:
            found.append(
                f"experts.closed_share={experts.closed_share} leaves a task {fewest} of the {experts.routed} routed"
                f" experts (experts.count x experts.split, as run.seed={around.seed} draws them), fewer than"
                f" experts.top_k={experts.top_k}; lower one of them"
            )
        if self.aggregator != "linear":
            found += [
                f"decoder.{key}={value}: belongs to projections that decoder.aggregator={self.aggregator} has not; set"
                " decoder.aggregator=linear"
                for key, value in (("adapter_rank", self.adapter_rank), ("level_weights", self.level_weights))
                if value
            ]
        found += kept_conflicts(experts, len(around.tasks), self.blocks, around.ep_size)
        return found + super().conflicts(around)

    def routed(self, around: Surroundings) -> Routed:
        experts, tasks = around.experts, len(around.tasks)
        return Routed(
            blocks=self.blocks,
            tasks=tasks,
            tokens=math.prod(self.grid(around.image_size)),
            channels=self.channels,
            experts=experts,
        )


class FGMoE(Framed):
    Settings = FGMoESettings

    def __init__(self, settings: FGMoESettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        self.ep_size = around.ep_size

    def create_aggregator(self, level_channels: Sequence[int]) -> nn.Module:
        settings = self.settings
        own = {"adapter_rank": settings.adapter_rank, "level_weights": settings.level_weights}
        return feature_aggregator(settings.aggregator, level_channels, settings.channels, len(self.tasks), **own)

    def create_block(self, block: int, around: Surroundings) -> FGMoEBlock:
        channels, tasks = self.settings.channels, len(self.tasks)
        return FGMoEBlock(tasks, channels, around.experts, around.ep_size, block, around.seed, self.grid_hw)

    def forward(self, levels: list[Tensor]) -> Output:
        (u_TNC, a_NC, a_BChw), terms = self.mixed(levels), []
        images = a_BChw.shape[0]  # `len` would be a constant in an exported model
        for block in self.blocks:
            u_TNC, *balance = run(block, u_TNC, a_NC, images, recompute=self.recompute)
            terms.append(BalanceTerms(*balance))
        return Output(self.predictions(u_TNC, images), terms, feature=a_BChw)

    def auxiliary(self, output: Output) -> Auxiliary:
        """The balance losses of all ranks' tokens, and the experts' load."""
        losses, counts = auxiliary_losses(output.terms, self.experts, self.experts.groups or self.ep_size)
        if self.experts.diversity and self.training:
            figures_L = torch.stack([diversity(block.routed, block.seen_TPC) for block in self.blocks])
            counts["diversity"] = torch.stack([figures_L, torch.ones_like(figures_L)])  # and how many they add up
        return Auxiliary(losses, counts)

    def after_step(self, counts: Mapping[str, Tensor]) -> None:
        """Tells every block's router its load."""
        routers = (module for module in self.modules() if isinstance(module, Router))
        for router, load_TE in zip(routers, counts["load"]):
            router.after_step(load_TE)

    def metrics(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        figures = metrics(counts, [task.name for task in self.tasks], self.ep_size)
        if "diversity" in counts:
            sum_L, times_L = counts["diversity"].tolist()
            figures |= {f"experts/diversity/block{b}": s / n for b, (s, n) in enumerate(zip(sum_L, times_L))}
        return figures

    def pictures(self, counts: Mapping[str, Tensor], caption: str) -> dict[str, np.ndarray]:
        names, groups = [task.name for task in self.tasks], self.experts.groups or self.ep_size
        load_LTE = counts["load"].cpu().numpy()
        return {"expert_load": load_map(load_LTE, figures_of(counts), names, caption=caption, groups=groups)}

    def describe(self) -> list[tuple[str, str]]:
        experts = self.experts
        whose = "for all tasks of a" if experts.bank == "shared" else "a task and"
        return [
            ("experts", f"{experts.routed} routed {whose} block ({experts.routed // self.ep_size} on each rank),"
                        f" {experts.top_k} a token, {experts.shared} shared, {experts.global_experts} global;"
                        f" backend {experts.backend}"),
            ("kernel", *self.notes()),
        ]  # fmt: skip

    def notes(self) -> list[str]:
        return [self.blocks[0].routed.check_kernel()]

    def parts(self) -> Iterator[tuple[nn.Module, str]]:
        for block in self.blocks:
            for module, part in ((block, "block"), (block.shared, "shared"), (block.global_experts, "global")):
                if module is not None:
                    yield module, part

    def unroute(self) -> None:
        for block in self.blocks:
            block.routed = Unrouted(block.routed.routers, self.experts)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Where several tasks reach routed experts, over one bank or by way of a later block, those are among them."""
        if self.experts.bank == "shared":
            reached = self.parameters()
        else:
            reached = self.blocks[:-1].parameters() if self.experts.crosses_tasks else ()
        return [*super().shared_parameters(), *filter(is_expert_parameter, reached)]

    def active_experts(self) -> int:
        """What the last block makes of a task may take all tasks in the blocks before it."""
        before = len(self.tasks) if self.experts.crosses_tasks else 1
        tasks_L = [before] * (len(self.blocks) - 1) + [1]
        return sum(block.routed.active_parameters(tasks) for block, tasks in zip(self.blocks, tasks_L))
