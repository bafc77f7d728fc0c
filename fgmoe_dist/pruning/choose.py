"""Which routed experts of each bank are left, by how much they were used.

Legend: L blocks, T tasks, E routed experts of a task, O banks of a block (T, or one that all tasks share).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from fgmoe_dist.experts.settings import Experts

Kept = list[list[list[int]]]  # as `experts.kept`
USED = "used"


def choose(usage_LTE: Tensor, experts: Experts, keep: str | float, globally: bool, tasks: Sequence[int]) -> Kept:
    """`experts.kept` for a model whose experts were used so much.

    Args:
        keep: `used`: all that some token chose; else the share of the experts that are there now.
        globally: the share is of all banks together and not of each. Either way a bank keeps `top_k` at least.
        tasks: of banks of their own, those of these tasks lose experts; of a shared bank, their use alone counts.
    """
    shared = experts.bank == "shared"
    usage_LOE = (usage_LTE[:, list(tasks)].sum(1, keepdim=True) if shared else usage_LTE).tolist()
    there = experts.kept or [[list(range(experts.routed))] * len(usage_OE) for usage_OE in usage_LOE]
    numbers: Counter[tuple[int, int]] = Counter()
    # The most used first; of equals, the earlier.
    free = [(b, o) for b, block in enumerate(there) for o in range(len(block)) if shared or o in tasks]
    order = sorted(((b, o, e) for b, o in free for e in there[b][o]), key=lambda p: (-usage_LOE[p[0]][p[1]][p[2]], p))
    if keep == USED:
        numbers.update((b, o) for b, o, e in order if usage_LOE[b][o][e] > 0)
    elif globally:
        numbers.update((b, o) for b, o, _ in order[: _share(keep, len(order))])
    else:
        numbers.update({(b, o): _share(keep, len(there[b][o])) for b, o in free})
    kept = [[[] if (b, o) in free else list(left) for o, left in enumerate(block)] for b, block in enumerate(there)]
    for b, o, e in order:
        if len(kept[b][o]) < max(numbers[b, o], experts.top_k):
            kept[b][o].append(e)
    return [[sorted(left) for left in block] for block in kept]


def count_kept(experts: Experts, tasks: int, blocks: int) -> int:
    """Routed experts of all banks and blocks."""
    if experts.kept:
        return sum(len(left) for block in experts.kept for left in block)
    return blocks * experts.banks(tasks) * experts.routed


def _share(keep: float, of: int) -> int:
    return math.ceil(keep * of - 1e-9)  # 0.1 of 10 is not above 1
