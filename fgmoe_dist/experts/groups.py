"""Which ranks hold which experts, and the process groups in which they meet.

Neighbours hold one copy of the experts together, as DeepSpeed has it: with ep_size 2 on 6 ranks, [0 1], [2 3] and
[4 5] exchange tokens, while [0 2 4] and [1 3 5] hold copies of the same experts. A place follows by arithmetic; the
groups are those of whoever places the experts, or our own where nobody has registered any.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from fgmoe_dist.ranks import TIMEOUT


class ExpertGroups(NamedTuple):
    """The groups of ranks that this process is in."""

    exchange: dist.ProcessGroup  # holds one copy of the experts together; its ranks are shares in order
    copies: dist.ProcessGroup  # holds the same experts


_groups: dict[int, ExpertGroups] = {}  # by ep_size


def register(ep_size: int, exchange: dist.ProcessGroup, copies: dist.ProcessGroup) -> None:
    """Tells the experts which groups to use; the arrangement must be the one above."""
    _groups[ep_size] = ExpertGroups(exchange, copies)


def find_groups(ep_size: int) -> ExpertGroups:
    """The registered groups; where there are none they are created, which is a collective of all ranks."""
    if ep_size not in _groups:
        register(ep_size, *_create_groups(ep_size))
    return _groups[ep_size]


def _create_groups(ep_size: int) -> ExpertGroups:
    world = dist.get_world_size()
    exchange = [dist.new_group(range(first, first + ep_size), TIMEOUT) for first in range(0, world, ep_size)]
    copies = [dist.new_group(range(share, world, ep_size), TIMEOUT) for share in range(ep_size)]
    return ExpertGroups(exchange[copy_rank(ep_size)], copies[ep_rank(ep_size)])


def ep_rank(ep_size: int) -> int:
    """Which share of the experts lives here, 0..ep_size-1."""
    return _rank() % ep_size


def copy_rank(ep_size: int) -> int:
    """Which copy of the experts lives here, 0..world/ep_size-1."""
    return _rank() // ep_size


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def mark_expert_parameter(parameter: nn.Parameter, ep_size: int) -> None:
    """Notes that this parameter differs between the `ep_size` ranks of an expert group, for engines to see."""
    parameter.expert_group = ep_size


def is_expert_parameter(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "expert_group")
