"""How everything here is timed: the device is waited for, contenders take turns, and the middle of the times counts.

Other work on the machine only ever makes a time longer, and for a while: so whoever is compared is timed in the same
while, and the longest times say least.
"""

from __future__ import annotations

import statistics
import time
from typing import Callable, Mapping

import torch
import torch.distributed as dist

from fgmoe_dist.ranks import barrier


def clock(device: torch.device) -> float:
    """Seconds, read once `device` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """The seconds that each contender gives in every round, in which all of them run once, one after the other.

    The first `warm` rounds do not count: they fill caches, import, and choose algorithms.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm + rounds):
        for name, run in contenders.items():
            taken = run()
            if turn >= warm:
                seconds[name].append(taken)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def seconds_of(operation: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Mean of the middle half of the calls that fit into `budget_s`, all ranks beginning together.

    There are three calls at least, unless one alone takes ten times the budget; one more comes first and is not timed.
    """
    operation()
    clock(device)
    if dist.is_initialized():
        barrier()
    times: list[float] = []
    while sum(times) < budget_s or (len(times) < 3 and sum(times) < 10 * budget_s):
        before = time.perf_counter()
        operation()
        times.append(clock(device) - before)
    return middle_mean(times)


def middle_mean(values: list[float]) -> float:
    """The mean without the quarter of the smallest and the quarter of the largest."""
    ordered, quarter = sorted(values), len(values) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle)
