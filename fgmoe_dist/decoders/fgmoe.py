"""FGMoE (arXiv 2507.19077): levels -> aggregator -> a mixer per task -> FGMoE blocks -> a head per task.

Equations: `parts/block.py`. What the paper leaves open is configuration, here and in `experts/settings.py`.

Legend: B images, C channels, h x w decoder grid, H x W input, T tasks, N = B h w tokens, K outputs of a task, L blocks,
E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fgmoe_dist.decoders.base import Auxiliary, Decoder, DecoderSettings, Levels, Output, Routed, Surroundings
from fgmoe_dist.decoders.parts.aggregator import Aggregator
from fgmoe_dist.decoders.parts.block import FGMoEBlock
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.decoders.parts.mixer import MixerLayer, deformable_mixer
from fgmoe_dist.drawing.load_map import load_figures, load_map
from fgmoe_dist.experts.backends.stock import StockExperts
from fgmoe_dist.experts.bank import GlobalExperts, SharedExperts
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.experts.router import BalanceLosses, BalanceTerms, Routers
from fgmoe_dist.experts.unrouted import Unrouted
from fgmoe_dist.tasks import Task


class FGMoESettings(DecoderSettings):
    kind: Literal["fgmoe"] = Field("fgmoe", description="which decoder: fgmoe, or another that is registered")
    channels: int = Field(256, ge=8, description="C, the width of every task's feature")
    stride: int = Field(4, ge=1, description="pixels of the input a decoder token stands for, each way")
    mixer_depth: int = Field(2, ge=0, description="deformable mixer layers a task")
    blocks: int = Field(1, ge=1, description="stacked FGMoE blocks")
    adapter_rank: int = Field(
        0, ge=0, description="rank of each task's low-rank adapter beside the aggregator; 0: none"
    )
    level_weights: bool = Field(False, description="each task weighs the tapped encoder levels for itself")

    sections: ClassVar[tuple[str, ...]] = ("experts",)

    def grid(self, size_hw: Sequence[int]) -> tuple[int, int]:
        """h x w of the decoder's tokens for an input of H x W."""
        return size_hw[0] // self.stride, size_hw[1] // self.stride

    def conflicts(self, around: Surroundings) -> list[str]:
        size, found = around.image_size, []
        if any(side % self.stride for side in size):
            found.append(
                f"data.image_size={list(size)} is not a multiple of decoder.stride={self.stride}; change one of them"
            )
        return found

    def routed(self, around: Surroundings) -> Routed:
        experts, tasks = around.experts, len(around.tasks)
        return Routed(
            blocks=self.blocks,
            tasks=tasks,
            tokens=math.prod(self.grid(around.image_size)),
            channels=self.channels,
            experts=experts,
        )


class FGMoE(Decoder):
    Settings = FGMoESettings

    def __init__(self, settings: FGMoESettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels, count = settings.channels, len(tasks)
        self.experts, self.ep_size, self.recompute = around.experts, around.ep_size, around.recompute
        self.grid_hw = settings.grid(around.image_size)
        self.aggregator = Aggregator(levels.channels, channels, count, settings.adapter_rank, settings.level_weights)
        self.mixers = nn.ModuleList(deformable_mixer(channels, settings.mixer_depth) for _ in tasks)
        self.blocks = nn.ModuleList(
            FGMoEBlock(count, channels, around.experts, around.ep_size, block, around.seed)
            for block in range(settings.blocks)
        )
        self.heads = nn.ModuleList(Head(channels, task.channels) for task in tasks)

    def forward(self, levels: list[Tensor]) -> Output:
        a_BChw, own_TBChw = self.aggregator(levels, self.grid_hw)
        u_TBChw = torch.stack([mixer(own) for mixer, own in zip(self.mixers, own_TBChw)])
        u_TNC, a_NC, terms = _to_tokens(u_TBChw), _to_tokens(a_BChw), []
        images = a_BChw.shape[0]  # `len` would be a constant in an exported model
        for block in self.blocks:
            u_TNC, *balance = self._run(block, u_TNC, a_NC, images)
            terms.append(BalanceTerms(*balance))
        features = u_TNC.unflatten(1, (images, *self.grid_hw)).permute(0, 1, 4, 2, 3)
        predictions = {task.name: head(x, self.size_hw) for task, head, x in zip(self.tasks, self.heads, features)}
        return Output(predictions, terms)

    def _run(self, block: FGMoEBlock, u_TNC: Tensor, a_NC: Tensor, images: int) -> tuple[Tensor, ...]:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, u_TNC, a_NC, images, use_reentrant=False)
        return block(u_TNC, a_NC, images)

    def auxiliary(self, output: Output) -> Auxiliary:
        """The balance losses of all ranks' tokens, and the experts' load."""
        experts, balance = self.experts, balance_losses(output.terms, self.experts.groups or self.ep_size)
        return Auxiliary(
            {
                "experts/balance_loss": (experts.balance_weight, balance.losses.experts),
                "experts/z_loss": (experts.z_weight, balance.losses.z),
                "experts/device_balance_loss": (experts.device_balance_weight, balance.losses.devices),
            },
            {"load": balance.load_LTE, "dropped": balance.dropped_LT},
        )

    def after_step(self, counts: Mapping[str, Tensor]) -> None:
        """Moves the routers' biases against the load. Nothing without `experts.bias_update_rate`."""
        routers = (module for module in self.modules() if isinstance(module, Routers))
        for router, load_TE in zip(routers, counts["load"]):
            router.update_bias(load_TE)

    def metrics(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        imbalance = {"experts/rank_imbalance": rank_imbalance(counts["load"], self.ep_size)}
        return imbalance | load_metrics(counts["load"], counts["dropped"], [task.name for task in self.tasks])

    def pictures(self, counts: Mapping[str, Tensor], caption: str) -> dict[str, np.ndarray]:
        names, groups = [task.name for task in self.tasks], self.experts.groups or self.ep_size
        load_LTE, dropped_LT = (counts[name].cpu().numpy() for name in ("load", "dropped"))
        return {"expert_load": load_map(load_LTE, dropped_LT, names, caption=caption, groups=groups)}

    def describe(self) -> list[tuple[str, str]]:
        experts = self.experts
        return [
            ("experts", f"{experts.routed} routed a task and block ({experts.routed // self.ep_size} on each rank),"
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

    def own_parameters(self) -> Iterator[nn.Parameter]:
        for module in self.modules():
            if isinstance(module, (Head, MixerLayer, Routers, SharedExperts, StockExperts)):
                yield from (p for p in module.parameters() if not is_expert_parameter(p))
            elif isinstance(module, GlobalExperts):
                yield from (module.gate_TCG, module.gate_bias_TG)
            elif isinstance(module, Aggregator):
                yield from (p for n, p in module.named_parameters() if n.startswith(("level_weights", "down", "up")))

    def active_experts(self) -> int:
        routed = self.ep_size * sum(p.numel() for p in self.parameters() if is_expert_parameter(p))
        return routed // (len(self.tasks) * self.experts.routed) * self.experts.top_k


def _to_tokens(x: Tensor) -> Tensor:
    """`[..., B, C, h, w]` to `[..., B h w, C]`."""
    return x.movedim(-3, -1).flatten(-4, -2)


class Balance(NamedTuple):
    """Balance losses, mean over blocks, and what the experts were asked for by the tokens of all ranks."""

    losses: BalanceLosses
    load_LTE: Tensor  # slots that chose each expert
    dropped_LT: Tensor  # of these, slots that found their expert full


def balance_losses(balance: list[BalanceTerms], groups: int = 1) -> Balance:
    """The losses are those of all ranks' tokens together (`BalanceLosses`), in `groups` of experts a device.

    A collective: loads are summed over all ranks in one small exchange.
    """
    counts = [torch.cat([t.load_TE, t.dropped_T[:, None], t.tokens.expand(len(t.load_TE), 1)], 1) for t in balance]
    counts_LTX, ranks = torch.stack(counts).detach(), 1
    if dist.is_initialized():
        dist.all_reduce(counts_LTX)
        ranks = dist.get_world_size()
    load_LTE, dropped_LT, tokens_LT = counts_LTX[..., :-2], counts_LTX[..., -2], counts_LTX[..., -1]
    each = [
        BalanceLosses.of(terms, load_TE, tokens_T[0], ranks, groups)
        for terms, load_TE, tokens_T in zip(balance, load_LTE, tokens_LT)
    ]
    return Balance(BalanceLosses(*(torch.stack(losses).mean() for losses in zip(*each))), load_LTE, dropped_LT)


def load_metrics(load_LTE: Tensor, dropped_LT: Tensor, task_names: list[str]) -> dict[str, float]:
    """`LoadFigures` of each block and task."""
    metrics = {}
    for block, (load_TE, dropped_T) in enumerate(zip(load_LTE.double().cpu().numpy(), dropped_LT.tolist())):
        for name, load_E, dropped in zip(task_names, load_TE, dropped_T):
            for figure, value in load_figures(load_E, dropped)._asdict().items():
                metrics[f"experts/{figure}/block{block}/{name}"] = float(value)
    return metrics


def rank_imbalance(load_LTE: Tensor, ep_size: int) -> float:
    """Slots routed to the busiest rank's share of the experts over the mean, all blocks and tasks together: what
    `fgmoe plan --imbalance` takes. Dropped slots count.
    """
    load_R = load_LTE.double().unflatten(-1, (ep_size, -1)).sum((0, 1, 3))
    return (load_R.max() / load_R.mean().clamp(min=1)).item()
