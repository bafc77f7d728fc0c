"""InterroGate (arXiv 2402.16848): a network of each task and a shared one, and gates that learn which units to share.

    phi_t = block_t(u_t),   psi = block_s(s)               of every layer; u_t and s are the aggregated feature first
    u_t  <- G_t phi_t + (1 - G_t) psi                      channel by channel, G_t = [sigmoid(alpha_t) >= 1/2]
    s    <- sum_t softmax_t(beta)_t u_t
    y_t   = head of the last u_t
    loss  + lambda mean_t max(0, mean over layers and channels of sigmoid(alpha_t) - tau)

The gradient of G is that of the sigmoid (straight-through). At first half of the gates, drawn at random, are open; the
loss asks for sharing where more than a share tau of a task's units are its own. After training gates are fixed: a
block's channel that no gate takes can go, and `fgmoe prune` takes it out; `decoder.gates` then says which are open, and
nothing of the answer changes. So a block is a 3x3 convolution, batch norm and GELU, which treat their outputs one by
one; a layer norm would mix them.

What differs, and why: the published networks are convolutional encoders, split layer by layer, that start from trained
single-task ones; here the encoder is frozen, and layers behind the aggregated feature are split. The paper was read in
its abstract and its reviews, its equations as they are given there.

Legend: B images, C channels, h x w grid, L layers, T tasks, K outputs of a task, H x W input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Optional

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.base import Auxiliary, Decoder, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.aggregator import Aggregator
from fgmoe_dist.decoders.parts.batch_norm import BatchNorm
from fgmoe_dist.decoders.parts.grid import GridSettings
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.tasks import Task


class InterrogateSettings(GridSettings):
    kind: Literal["interrogate"] = Field("interrogate", description="gates learn which units tasks share")
    layers: int = Field(2, ge=1, le=1000, description="L, layers of each task's network and of the shared one")
    gate_weight: float = Field(1.0, ge=0, description="lambda, weight of the loss that asks for sharing")
    own_share: float = Field(0.5, ge=0, le=1, description="tau, share of own units that costs nothing")
    gates: list[list[str]] = Field(
        [],
        description="of a pruned model (fgmoe prune): for each layer and task which channels are its own, a bit each in"
        " hexadecimal; empty: gates are learnt",
    )

    def conflicts(self, around: Surroundings) -> list[str]:
        found, tasks = super().conflicts(around), len(around.tasks)
        digits = -(-self.channels // 4)
        whole = len(self.gates) == self.layers and all(
            len(row) == tasks and all(len(text) == digits and _is_hex(text) for text in row) for row in self.gates
        )
        if self.gates and not whole:
            found.append(
                f"decoder.gates of {len(self.gates)} layers: fits no decoder.layers={self.layers} of {tasks} tasks and"
                f" decoder.channels={self.channels}; take the configuration that fgmoe prune wrote"
            )
        return found

    def open_LTC(self, tasks: int) -> Optional[Tensor]:
        """Which channels are a task's own, of a pruned model; None where gates are learnt."""
        if not self.gates:
            return None
        bits = [[f"{int(text, 16):0{4 * len(text)}b}"[: self.channels] for text in row] for row in self.gates]
        # On the CPU even where a plan makes a model without numbers: they decide its shape.
        return torch.tensor([[[bit == "1" for bit in text] for text in row] for row in bits], device="cpu")


def to_gates(open_LTC: Tensor) -> list[list[str]]:
    """`decoder.gates` of channels that are open."""
    digits = -(-open_LTC.shape[-1] // 4)
    return [[f"{int(_bits(row_C).ljust(4 * digits, '0'), 2):0{digits}x}" for row_C in open_TC] for open_TC in open_LTC]


def _bits(open_C: Tensor) -> str:
    return "".join("01"[bit] for bit in open_C.int().tolist())


class Block(nn.Module):
    """3x3 convolution, batch norm, GELU; of a pruned model's outputs those alone that are used."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, outputs, 3, padding=1, bias=False), BatchNorm(outputs)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x_BChw)))


class GatedLayer(nn.Module):
    """A block of each task and a shared one, and what each task takes of both.

    Args:
        open_TC: the gates where they are fixed; blocks then have the channels that these take, and none where that is
            no channel at all.
        is_last: nothing goes on to the shared network.
    """

    def __init__(self, channels: int, tasks: int, open_TC: Optional[Tensor], is_last: bool):
        super().__init__()
        self.alpha_TC = nn.Parameter(torch.empty(tasks, channels).normal_(std=0.1)) if open_TC is None else None
        self.beta_TC = None if is_last else nn.Parameter(torch.zeros(tasks, channels))
        own_T = [channels] * tasks if open_TC is None else open_TC.sum(1).tolist()
        common = channels if open_TC is None else int((~open_TC.all(0)).sum())
        self.own = nn.ModuleList(Block(channels, outputs) if outputs else None for outputs in own_T)
        self.common = Block(channels, common) if common else None
        self.register_buffer("source_TC", None if open_TC is None else _sources(open_TC), persistent=False)

    def forward(self, u_T: Sequence[Tensor], s_BChw: Tensor) -> tuple[list[Tensor], Optional[Tensor]]:
        """Each task's map, and the shared network's; None behind the last layer."""
        psi = None if self.common is None else self.common(s_BChw)
        if self.source_TC is None:
            gate_TC = self.gates().to(s_BChw.dtype)
            phi_T = [block(u) for block, u in zip(self.own, u_T)]
            taken_T = [_mix(gate_C[:, None, None], phi, psi) for gate_C, phi in zip(gate_TC, phi_T)]
        else:
            phi_T = [None if block is None else block(u) for block, u in zip(self.own, u_T)]
            both_T = [torch.cat([part for part in (phi, psi) if part is not None], dim=1) for phi in phi_T]
            taken_T = [both[:, source_C] for both, source_C in zip(both_T, self.source_TC)]
        if self.beta_TC is None:
            return taken_T, None
        share_TC = self.beta_TC.softmax(0)
        return taken_T, sum(share_C[:, None, None] * taken for share_C, taken in zip(share_TC, taken_T))

    def gates(self) -> Tensor:
        """`gate_TC`, 0 or 1, with the sigmoid's gradient."""
        soft_TC = self.alpha_TC.sigmoid()
        return (self.alpha_TC >= 0).to(soft_TC) + (soft_TC - soft_TC.detach())


def _mix(gate: Tensor, phi: Tensor, psi: Tensor) -> Tensor:
    return gate * phi + (1 - gate) * psi


def _sources(open_TC: Tensor) -> Tensor:
    """For each task and channel, where it lies among the task's own channels that are left and then the shared ones."""
    common_C = ~open_TC.all(0)
    own_TC = open_TC.cumsum(1) - 1
    shared_TC = open_TC.sum(1, keepdim=True) + common_C.cumsum(0) - 1
    return torch.where(open_TC, own_TC, shared_TC)


class Interrogate(Decoder):
    Settings = InterrogateSettings

    def __init__(self, settings: InterrogateSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        channels, count, depth = settings.channels, len(tasks), settings.layers
        self.grid_hw = settings.grid(around.image_size)
        self.aggregator = Aggregator(levels.channels, channels, 1)
        open_LTC = settings.open_LTC(count)
        self.layers = nn.ModuleList(
            GatedLayer(channels, count, None if open_LTC is None else open_LTC[layer], layer == depth - 1)
            for layer in range(depth)
        )
        self.heads = nn.ModuleList(Head(channels, task.channels) for task in tasks)

    def forward(self, levels: list[Tensor]) -> Output:
        s_BChw, _ = self.aggregator(levels, self.grid_hw)
        u_T = [s_BChw] * len(self.tasks)
        for layer in self.layers:
            u_T, s_BChw = layer(u_T, s_BChw)
        own = zip(self.tasks, self.heads, u_T)
        return Output({task.name: head(u_BChw, self.size_hw) for task, head, u_BChw in own})

    def open_LTC(self) -> Tensor:
        """Which channels are a task's own."""
        fixed = self.settings.open_LTC(len(self.tasks))
        return torch.stack([layer.alpha_TC >= 0 for layer in self.layers]) if fixed is None else fixed

    def auxiliary(self, output: Output) -> Auxiliary:
        """What asks for sharing, of gates that are learnt."""
        if self.settings.gates:
            return Auxiliary()
        soft_LTC = torch.stack([layer.alpha_TC.float().sigmoid() for layer in self.layers])
        loss = (soft_LTC.mean((0, 2)) - self.settings.own_share).clamp(min=0).mean()
        return Auxiliary({"interrogate/gate_loss": (self.settings.gate_weight, loss)})

    def metrics(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """The share of its own units of each task."""
        share_T = self.open_LTC().float().mean((0, 2)).tolist()
        return {f"interrogate/own_share/{task.name}": share for task, share in zip(self.tasks, share_T)}

    def describe(self) -> list[tuple[str, str]]:
        share_T = self.open_LTC().float().mean((0, 2)).tolist()
        shares = ", ".join(f"{task.name} {share:.0%}" for task, share in zip(self.tasks, share_T))
        how = "fixed, and what none takes is gone" if self.settings.gates else "learnt"
        return [("gates", f"{how}; own units: {shares}")]

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """What comes after the last mixture of all tasks: of earlier layers every task hears."""
        last = self.layers[-1]
        if last.alpha_TC is not None:
            yield last.alpha_TC
        yield from last.own.parameters()
        yield from self.heads.parameters()


def _is_hex(text: str) -> bool:
    return set(text) <= set("0123456789abcdef")
