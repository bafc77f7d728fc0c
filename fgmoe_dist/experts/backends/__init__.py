"""The routed experts of a block, in the backends that `experts.backend` can name: a file and a line for each.

All speak the protocol of `RoutedExperts` (base.py): dispatch, compute, combine. Libraries are imported when a layer of
theirs is created.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from fgmoe_dist.experts.backends.base import RoutedExperts
from fgmoe_dist.experts.backends.deepspeed import DeepSpeedExperts
from fgmoe_dist.experts.backends.fairscale import FairscaleExperts
from fgmoe_dist.experts.backends.fused import FusedExperts
from fgmoe_dist.experts.settings import Experts

BACKENDS: dict[str, type[RoutedExperts]] = {
    "fused": FusedExperts,
    "deepspeed": DeepSpeedExperts,
    "fairscale": FairscaleExperts,
}


def create_routed_experts(
    tasks: int,
    channels: int,
    config: Experts,
    ep_size: int,
    block: int,
    seed: int,
    grid_hw: Optional[Sequence[int]] = None,
) -> RoutedExperts:
    """The routed experts of block `block`, in the backend that `config.backend` names, for tokens of such grids."""
    layer = BACKENDS[config.backend](tasks, channels, config, ep_size, block, seed)
    if grid_hw is not None:
        layer.kind = layer.kind.on(grid_hw)
    return layer
