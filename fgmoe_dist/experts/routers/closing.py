"""Which experts of a shared bank a task may not use (MMoEEx, arXiv 2106.10595: exclusivity and exclusion).

A share of the experts, drawn by the run's seed, gets a task each: an exclusive expert is closed to all others, an
excluded one to that task. The tasks are dealt out in turn from a shuffled order, so that none gets many more than
another; MMoEEx draws each on its own. A closed expert's logit is -inf: its gate is exactly 0, and so is the gradient.
The published code sets gates' weights to 0 in its place, which leaves a gate of e^0 over the sum.

Legend: T tasks, E routed experts.
"""

from __future__ import annotations

import zlib
from typing import Optional

import torch
from torch import Tensor

from fgmoe_dist.experts.settings import Experts


def closed_experts(config: Experts, tasks: int, seed: int, block: int) -> Optional[Tensor]:
    """`closed_TE`, true where the expert is closed to the task; None where none is."""
    number = round(config.closed_share * config.routed)
    if not number:
        return None
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, "closed", block)).encode()))
    chosen = torch.randperm(config.routed, generator=generator)[:number]
    task = torch.randperm(tasks, generator=generator)[torch.arange(number) % tasks]
    closed_TE = torch.zeros(tasks, config.routed, dtype=torch.bool)
    if config.closing == "exclusive":
        closed_TE[:, chosen] = True
    closed_TE[task, chosen] = config.closing == "excluded"
    return closed_TE


def open_to_fewest(config: Experts, tasks: int, seed: int, blocks: int) -> int:
    """How many experts are open to the task that has fewest, in any of the blocks."""
    masks = [closed_experts(config, tasks, seed, block) for block in range(blocks)]
    return min((config.routed - int(closed_TE.sum(1).max()) for closed_TE in masks if closed_TE is not None),
               default=config.routed)  # fmt: skip
