"""Which ranks share a node, against a list of all ranks."""

from __future__ import annotations

import pytest

from fgmoe_dist.planning.placement import Placement, Spread


def near_peers_by_listing(nodes: int, gpus: int, ep_size: int) -> int:
    ranks = range(nodes * gpus)
    return min(
        sum(other != rank and other // ep_size == rank // ep_size and other // gpus == rank // gpus for other in ranks)
        for rank in ranks
    )


@pytest.mark.parametrize(("nodes", "gpus", "ep_size"), [
    (1, 1, 1), (1, 8, 4), (2, 8, 8), (2, 8, 16), (4, 2, 8), (2, 6, 4), (4, 3, 6), (3, 4, 6), (8, 1, 4), (5, 4, 10),
])  # fmt: skip
def test_peers_on_the_node(nodes, gpus, ep_size):
    placement = Placement(nodes, gpus, ep_size)
    assert placement.near_peers == near_peers_by_listing(nodes, gpus, ep_size)
    assert placement.near_peers + placement.far_peers == ep_size - 1
    assert placement.copies * ep_size == placement.world


def test_who_shares_an_expert():
    assert Placement(2, 8, 4).expert_replicas == Spread(near=2, nodes=2)
    assert Placement(2, 8, 16).expert_replicas == Spread(near=1, nodes=1)
    assert Placement(4, 8, 16).expert_replicas == Spread(near=1, nodes=2)
    assert Placement(1, 4, 1).expert_replicas == Placement(1, 4, 1).replicas == Spread(near=4, nodes=1)


def test_bytes_of_a_reduction():
    assert Spread(near=4, nodes=1).ring_bytes(100) == (75, 0)
    assert Spread(near=1, nodes=4).ring_bytes(100) == (0, 75)
    assert Spread(near=4, nodes=2).ring_bytes(100) == (75, 12.5)  # a quarter of it crosses, half of that
    assert Spread(near=1, nodes=1).ring_bytes(100) == (0, 0)
