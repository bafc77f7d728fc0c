"""Collectives between ranks at several sizes, fitted as a latency per message and a rate of bytes."""

from __future__ import annotations

import math
import time
from typing import Callable

import torch
import torch.distributed as dist

from fgmoe_dist.benches.timing import clock, middle_mean
from fgmoe_dist.planning.profile import Links, fit_link

SIZES = tuple(4**n * 1024 for n in range(1, 8))  # 4 KiB to 16 MiB
REPEATS = 7


def measure_links(device: torch.device, group: dist.ProcessGroup | None = None, ranks: int = 0) -> Links:
    """The links of `group` (None: the world), which all of its ranks measure together; `ranks` is its size."""
    ranks = ranks or dist.get_world_size(group)
    exchange, reduce = [], []
    for size in SIZES:
        sent = torch.zeros(size // ranks * ranks, dtype=torch.uint8, device=device)
        received = torch.empty_like(sent)
        seconds = _agreed(lambda s=sent, r=received: dist.all_to_all_single(r, s, group=group), device, group)
        exchange.append((ranks - 1, size * (ranks - 1) / ranks, seconds))
        values = torch.zeros(size // 4, device=device)
        seconds = _agreed(lambda v=values: dist.all_reduce(v, group=group), device, group)
        # Two rounds, each of log2(ranks) messages and (ranks - 1) / ranks of the bytes.
        reduce.append((2 * math.ceil(math.log2(ranks)), 2 * size * (ranks - 1) / ranks, seconds))
    link = fit_link(exchange)
    return Links(link, fit_link(reduce), _overlap(device, group, ranks))


def measure_internode(device: torch.device, local_world: int) -> Links | None:
    """Links of ranks with the same place on their nodes, all places at once; None on one node."""
    world = dist.get_world_size()
    if world == local_world:
        return None
    groups = [dist.new_group(list(range(place, world, local_world))) for place in range(local_world)]
    return measure_links(device, groups[dist.get_rank() % local_world], world // local_world)


def _overlap(device: torch.device, group: dist.ProcessGroup | None, ranks: int) -> float:
    """The share of an exchange of 4 MiB that goes on while the rank multiplies matrices for as long."""
    sent = torch.zeros((4 << 20) // ranks * ranks, dtype=torch.uint8, device=device)
    received, a = torch.empty_like(sent), torch.randn(256, 256, device=device)

    def exchange() -> None:
        dist.all_to_all_single(received, sent, group=group)

    def multiply() -> None:
        for _ in range(products):
            a @ a

    products = 32
    alone = _agreed(exchange, device, group)
    products = max(1, int(products * alone / _agreed(multiply, device, group)))
    busy = _agreed(multiply, device, group)

    def both() -> None:
        work = dist.all_to_all_single(received, sent, group=group, async_op=True)
        multiply()
        work.wait()

    together = _agreed(both, device, group)
    return min(1.0, max(0.0, (alone + busy - together) / min(alone, busy)))


def _agreed(operation: Callable[[], object], device: torch.device, group: dist.ProcessGroup | None) -> float:
    """Seconds of a collective: those of the slowest rank, since all wait for it."""
    times = []
    for _ in range(REPEATS + 2):
        dist.barrier(group)
        before = time.perf_counter()
        operation()
        times.append(clock(device) - before)
    seconds = torch.tensor(middle_mean(times[2:]), dtype=torch.float64, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX, group=group)
    return seconds.item()
