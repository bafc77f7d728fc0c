"""FGMoE's block with a dense MLP in the place of its routed experts: does routing earn what it costs?

For task t with token u, the aggregated feature a of the same place, and u' = norm(u):

    h = u + sum_{s <= S} E^t_s(u') + sum_g softmax(a W_t)_g E_g(norm(a))

The S experts of a task are always on and ungated, so that they are one MLP of hidden size S H/m; `experts` says what
they are compared with (parts/block.py). As many as FGMoE uses per token, or as it has:

    size: active    S = K_s + k       the parameters, and the work, of one token
    size: total     S = K_s + N m     the parameters of all; of a bank that tasks share, each task has its share

Counted by `parameter_counts`, it has FGMoE's active or total number, less the routers, which it has not. Global experts
stay as they are: set `experts.global_experts=0` for both to compare without. Everything around the block is FGMoE's.

Legend: B images, C channels, T tasks, N = B h w tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.base import Output, Surroundings
from fgmoe_dist.decoders.parts.frame import Framed, FrameSettings
from fgmoe_dist.decoders.parts.recompute import run
from fgmoe_dist.experts.bank import SharedExperts, create_global_experts
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.rules import conflicts as expert_conflicts
from fgmoe_dist.experts.settings import Experts


class DenseSettings(FrameSettings):
    kind: Literal["dense"] = Field("dense", description="FGMoE with a dense MLP in the place of its routed experts")
    size: Literal["active", "total"] = Field(
        "active", description="of the MLP: as the experts that a token of FGMoE passes, or as all that there are"
    )

    sections: ClassVar[tuple[str, ...]] = ("experts",)

    def always_on(self, experts: Experts, tasks: int) -> int:
        """S, fine experts side by side for each task."""
        routed = experts.top_k if self.size == "active" else experts.banks(tasks) * experts.routed // tasks
        return experts.shared + routed

    def conflicts(self, around: Surroundings) -> list[str]:
        experts, tasks = around.experts, len(around.tasks)
        found = expert_conflicts(experts, self.channels, around.ep_size, around.precision) + super().conflicts(around)
        if self.size == "total" and experts.banks(tasks) * experts.routed % tasks:
            found.append(
                f"decoder.size=total: the {experts.routed} routed experts of experts.bank={experts.bank} do not divide"
                f" among {tasks} tasks; choose a multiple with experts.count and experts.split"
            )
        return found


class DenseBlock(nn.Module):
    def __init__(
        self, tasks: int, channels: int, experts: Experts, always_on: int, grid_hw: Sequence[int], *identity: object
    ):
        super().__init__()
        kind, self.global_experts, self.global_norm = KINDS[experts.kind].on(grid_hw), None, None
        self.norm = nn.LayerNorm(channels)
        self.mlp = SharedExperts(kind, tasks, channels, experts.fine_hidden, always_on, *identity)
        if experts.global_experts:
            self.global_norm = None if experts.crosses_tasks else nn.LayerNorm(channels)
            self.global_experts = create_global_experts(kind, tasks, channels, experts, *identity)

    def forward(self, u_TNC: Tensor, a_NC: Tensor) -> Tensor:
        x_TNC = self.norm(u_TNC)
        h_TNC = u_TNC + self.mlp(x_TNC, None)
        if self.global_experts is None:
            return h_TNC
        return h_TNC + self.global_experts(x_TNC if self.global_norm is None else self.global_norm(a_NC))


class Dense(Framed):
    Settings = DenseSettings

    @property
    def always_on(self) -> int:
        """S, fine experts side by side for each task."""
        return self.settings.always_on(self.experts, len(self.tasks))

    def create_block(self, block: int, around: Surroundings) -> DenseBlock:
        identity = around.seed, "block", block
        return DenseBlock(
            len(self.tasks), self.settings.channels, around.experts, self.always_on, self.grid_hw, *identity
        )

    def forward(self, levels: list[Tensor]) -> Output:
        u_TNC, a_NC, a_BChw = self.mixed(levels)
        for block in self.blocks:
            u_TNC = run(block, u_TNC, a_NC, recompute=self.recompute)
        return Output(self.predictions(u_TNC, a_BChw.shape[0]), feature=a_BChw)

    def describe(self) -> list[tuple[str, str]]:
        size, always_on = self.settings.size, self.always_on
        mlps = sum(p.numel() for block in self.blocks for p in block.mlp.parameters())
        told = (
            f"a dense MLP of hidden size {always_on * self.experts.fine_hidden} a task and block, {mlps:,} parameters"
            f" in all: {always_on} fine experts, FGMoE's {size} number; {self.experts.global_experts} global"
        )
        return [("block", told)]
