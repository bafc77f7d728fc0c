"""How ranks lie on nodes, and which of a group's share one. DeepSpeed fills nodes in order: the ranks of an expert
group are neighbours, those that hold the same experts are `ep_size` apart."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    nodes: int
    gpus: int  # per node: ranks, whatever they compute on
    ep_size: int

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    @property
    def copies(self) -> int:
        """edp, ranks that hold the same experts."""
        return self.world // self.ep_size

    @property
    def near_peers(self) -> int:
        """Other ranks of an expert group on the same node; of the rank that has fewest."""
        if self.gpus % self.ep_size == 0:
            return self.ep_size - 1
        # Which ranks of a group share a node repeats after so many ranks.
        period = min(self.world, math.lcm(self.gpus, self.ep_size))
        return min(self._near_peers(rank) for rank in range(period))

    def _near_peers(self, rank: int) -> int:
        group, node = rank // self.ep_size * self.ep_size, rank // self.gpus * self.gpus
        return min(group + self.ep_size, node + self.gpus) - max(group, node) - 1

    @property
    def far_peers(self) -> int:
        return self.ep_size - 1 - self.near_peers

    @property
    def replicas(self) -> Spread:
        """Who shares the replicated parameters: everyone."""
        return Spread(self.gpus, self.nodes)

    @property
    def expert_replicas(self) -> Spread:
        """Who shares an expert."""
        near = max(1, self.gpus // self.ep_size)
        return Spread(near, math.ceil(self.copies / near))


@dataclass(frozen=True)
class Spread:
    """A group of ranks: so many on a node, on so many nodes."""

    near: int
    nodes: int

    @property
    def ranks(self) -> int:
        return self.near * self.nodes

    def ring_bytes(self, size: float) -> tuple[float, float]:
        """What a rank sends within its node and beyond it to reduce-scatter, or to gather, `size` bytes.

        First within the node; then each rank takes its share across: (n - 1) / n of the bytes each time.
        """
        return size * (self.near - 1) / self.near, size / self.near * (self.nodes - 1) / self.nodes
