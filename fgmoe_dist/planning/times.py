"""Seconds of a step by part, from what a micro-batch amounts to and what a machine was measured to do.

Every operation takes its amount over a measured rate, plus a measured overhead. A collective takes a latency per
message, and its bytes over the wire's rate; near and far wires work at once. Of an exchange only what the overlapped
computation (shared experts on the way out, global experts on the way back) leaves uncovered counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Sequence

from fgmoe_dist.config import Config
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.placement import Placement, Spread
from fgmoe_dist.planning.profile import Compute, Link, Links, Machine
from fgmoe_dist.planning.traffic import accumulation, busiest, row_bytes, rows_to_a_rank, value_bytes

STAGES = ("data", "encoder", "forward", "backward", "update")
ROW_PASSES = 3  # a row is gathered, packed and unpacked, or unpacked, packed and added up


@dataclass(frozen=True)
class Part:
    """One thing a step spends time on, and in which stage of the step."""

    name: str
    stage: str
    seconds: float


def predict(
    config: Config, counts: Counts, placement: Placement, machine: Machine, imbalance: float = 1.0
) -> list[Part]:
    """The parts of one optimiser step of one rank. `config.parallel.ep_size` is the placement's.

    `machine` has been measured in the precisions of `config` and has the links that `placement` needs: see
    `check_machine`.
    """
    model = _StepModel(config, counts, placement, machine, busiest(imbalance, placement.ep_size))
    micro_batches = accumulation(config, placement.world)
    parts = [
        *model.dense(micro_batches),
        *model.routed(micro_batches),
        *model.exchange(micro_batches),
        *model.reductions(micro_batches),
        model.optimiser(),
    ]
    return [*parts, model.data(micro_batches, sum(part.seconds for part in parts))]


def total(parts: Sequence[Part], **wanted: str) -> float:
    """Seconds of the parts whose attributes are as `wanted`."""
    return sum(part.seconds for part in parts if all(getattr(part, key) == value for key, value in wanted.items()))


@dataclass(frozen=True)
class _StepModel:
    config: Config
    counts: Counts
    placement: Placement
    machine: Machine
    imbalance: float

    @cached_property
    def compute(self) -> Compute:
        return self.machine.compute_at(self.placement.gpus)

    @cached_property
    def links(self) -> Optional[Links]:
        return self.machine.links_at(self.placement.gpus)

    def dense(self, times: int) -> list[Part]:
        """Everything but the routed experts, by part of the model."""
        backward = self._seconds("decoder", backward=True)
        if self.config.train.activation_checkpointing:
            backward += self._seconds("block", "shared", "global")
        return [
            Part("encoder", "encoder", times * self._seconds("encoder")),
            Part("decoder", "forward", times * self._seconds("decoder", "block", "shared", "global")),
            Part("losses", "forward", times * self._seconds("losses")),
            Part("decoder", "backward", times * backward),
        ]

    def _seconds(self, *parts: str, backward: bool = False) -> float:
        """Of the counted work of `parts`; the backward pass is not told apart and all the decoder's."""
        return sum(
            self.compute.seconds(work.kind, work.precision, work.amount, work.size, work.calls)
            for work in self.counts.work
            if work.part in parts and work.backward == backward
        )

    def routed(self, times: int) -> list[Part]:
        """Routers and the experts' own multiplications, of the busiest rank."""
        config, compute, precision = self.config, self.compute, self.config.train.precision
        routed, experts = config.routed, config.routed.experts
        if not routed.blocks:
            return []
        channels, hidden = routed.channels, experts.fine_hidden
        slots = routed.tasks * self.counts.tokens * experts.top_k
        local = experts.banks(routed.tasks) * experts.routed / self.placement.ep_size
        flops = self.imbalance * slots * KINDS[experts.kind].flops(channels, hidden)
        scores = routed.tasks * self.counts.tokens * experts.routed
        forward = compute.seconds("matmul", "fp32", 2 * scores * channels, min(channels, experts.routed))
        forward += 3 * compute.seconds("softmax", "fp32", scores)  # softmax, top-k, logsumexp
        backward = 2 * forward
        for kind in ("experts", "experts_backward"):
            width = compute.nearest_width(kind, precision, channels, hidden)
            seconds = compute.seconds(width, precision, flops * (1 if kind == "experts" else 2), slots / local, 0)
            forward, backward = (forward + seconds, backward) if kind == "experts" else (forward, backward + seconds)
        if config.train.activation_checkpointing:
            backward += forward
        blocks = routed.blocks * times
        return [
            Part("routed experts", "forward", blocks * forward),
            Part("routed experts", "backward", blocks * backward),
        ]

    def exchange(self, times: int) -> list[Part]:
        """What of the all-to-alls is not covered, and the copies of rows around them."""
        blocks = self.config.routed.blocks
        if self.placement.ep_size == 1 or not blocks:
            return []
        sizes = row_bytes(self.config)
        hidden = {part: self._seconds(part) / blocks for part in ("shared", "global")}
        cover = {  # the backward pass takes about twice as long, and covers in the reverse order
            "out": hidden["shared"], "back": hidden["global"],
            "back_gradient": 2 * hidden["global"], "out_gradient": 2 * hidden["shared"],
        }  # fmt: skip
        seconds = {name: self._uncovered(size, cover[name]) for name, size in sizes.items()}
        counts = self._all_to_all(8)
        forward = counts + seconds["out"] + seconds["back"]
        backward = seconds["back_gradient"] + seconds["out_gradient"]
        if self.config.train.activation_checkpointing:
            backward += forward
        times *= blocks
        return [Part("exchange", "forward", times * forward), Part("exchange", "backward", times * backward)]

    def _uncovered(self, size: int, cover: float) -> float:
        rows = self.imbalance * rows_to_a_rank(self.config)
        copies = 2 * ROW_PASSES * rows * self.placement.ep_size * size  # read and written
        wire = self._all_to_all(rows * size)
        return max(0.0, wire - self.links.overlap * cover) + self.compute.seconds("stream", "fp32", copies)

    def _all_to_all(self, size: float) -> float:
        """Seconds to exchange `size` bytes with each other rank of the group."""
        near, far = self.placement.near_peers, self.placement.far_peers
        seconds = _time(self.links.all_to_all, near, near * size) if near else 0.0
        return max(seconds, _time(self.machine.internode.all_to_all, far, far * size) if far else 0.0)

    def reductions(self, times: int) -> list[Part]:
        """Gradients averaged, in the backward pass; parameters gathered and norms summed, in the update."""
        config, width = self.config, value_bytes(self.config)
        dense = self.counts.dense_parameters * width
        experts = self.counts.expert_parameters * width / self.placement.ep_size
        groups = ((dense, self.placement.replicas), (experts, self.placement.expert_replicas))
        once = sum(2 * self._ring(size, spread) for size, spread in groups)
        once += self.compute.seconds("stream", "fp32", 4 * (dense + experts))  # into the buffer and out of it
        reduced = times if config.parallel.zero_stage == 2 else 1
        small = self._ring(4, self.placement.replicas)  # the experts' load, and three sums for the norm
        gather = sum(self._ring(size, spread) for size, spread in groups) if config.parallel.zero_stage else 0.0
        return [
            Part("reductions", "forward", 2 * times * small),
            Part("reductions", "backward", reduced * once),
            Part("reductions", "update", gather + 6 * small),
        ]

    def _ring(self, size: float, spread: Spread) -> float:
        """Seconds to reduce-scatter, or to gather, `size` bytes: half an all-reduce."""
        near, far = spread.ring_bytes(size)
        seconds = _time(self.links.all_reduce, math.ceil(math.log2(spread.near)), near) if spread.near > 1 else 0.0
        if spread.nodes == 1:
            return seconds
        return max(seconds, _time(self.machine.internode.all_reduce, math.ceil(math.log2(spread.nodes)), far))

    def optimiser(self) -> Part:
        """Norm, clipping and Adam on what this rank owns."""
        stage, placement = self.config.parallel.zero_stage, self.placement
        dense, experts = self.counts.dense_parameters, self.counts.expert_parameters / placement.ep_size
        own = dense / placement.world + experts / placement.copies if stage else dense + experts
        passes = self.compute.seconds("stream", "fp32", 4 * 4 * own)  # norm, clip, and the copy back
        return Part("optimiser", "update", self.compute.seconds("adam", "fp32", own) + passes)

    def data(self, times: int, others: float) -> Part:
        """Reading and augmenting: all of it in this process, or what several loaders do not finish meanwhile."""
        pixels = math.prod(self.config.data.image_size) * self.config.train.micro_batch_size * times
        workers = self.config.data.workers
        seconds = pixels / self.machine.pixels_per_s / max(1, workers)
        return Part("data", "data", max(0.0, seconds - others) if workers else seconds)


def _time(link: Link, messages: float, size: float) -> float:
    return messages * link.latency_s + size / link.bytes_per_s
