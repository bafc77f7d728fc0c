"""A profile of this machine for `fgmoe plan`: rates of operations and links with 1, 2, 4 ranks at once.

Starts its own ranks, one world after the other. Started by torchrun (on one node or more) it measures with the ranks it
is given instead, and between nodes too.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, Sequence

from fgmoe_dist.errors import UserError
from fgmoe_dist.machine import cores, processor, versions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fgmoe_dist.planning.profile import Machine
    from fgmoe_dist.ranks import Ranks

BUDGET_S = 0.04  # for each rate and precision
TASKS = ("semseg", "depth", "normals", "edge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="R",
        help="numbers of ranks measured, one after the other (default 1 2 4)",
    )  # fmt: skip
    parser.add_argument(
        "--milliseconds", type=float, default=1000 * BUDGET_S, metavar="MS", help="spent on each rate (default 40)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The profile as `fgmoe plan --machine` reads it. Under a launcher only rank 0 has it."""
    if min(args.ranks) < 1 or args.milliseconds <= 0:
        raise UserError("--ranks and --milliseconds must be positive")
    from fgmoe_dist.planning.profile import machine_json
    from fgmoe_dist.ranks import process_group

    if "RANK" in os.environ:
        with process_group() as ranks:
            one = measure(ranks, args.milliseconds / 1000)
            worlds = {_local_world(ranks): one}
            if not ranks.is_first:
                args.json = None  # rank 0 alone writes
            machine = assemble(worlds)
            if ranks.is_first:
                _print(machine)
    else:
        machine = profile(args.ranks, args.milliseconds / 1000)
    return machine_json(machine)


def profile(worlds: Sequence[int], budget_s: float = BUDGET_S) -> Machine:
    """The profile of this machine with each of `worlds` ranks at once; printed too."""
    from fgmoe_dist.benches.ranks import on_ranks

    found = {}
    for world in sorted(set(worlds)):
        print(f"measuring this machine with {world} rank(s) ...", flush=True)
        found[world] = on_ranks(world, measure, budget_s)
    machine = assemble(found)
    _print(machine)
    return machine


def measure(ranks: Ranks, budget_s: float) -> dict[str, Any]:
    """What one world of ranks finds: `Compute`, `Links` or None, and facts of the machine."""
    import psutil
    import torch

    from fgmoe_dist.benches.links import measure_internode, measure_links
    from fgmoe_dist.benches.rates import measure_compute
    from fgmoe_dist.training import trainer  # noqa: F401 - for what it imports, which a rank has in memory

    base = psutil.Process().memory_info().rss if ranks.device.type == "cpu" else 0
    local_world = _local_world(ranks)
    local = _local_group(ranks.world, local_world)
    found = {
        "compute": measure_compute(ranks.device, budget_s),
        "links": measure_links(ranks.device, local, local_world) if local_world > 1 else None,
        "internode": measure_internode(ranks.device, local_world) if ranks.world > local_world else None,
        "pixels_per_s": measure_pixels(budget_s),
        "base_bytes": base,
        "device": ranks.device.type,
    }
    if ranks.device.type == "cuda":
        properties = torch.cuda.get_device_properties(ranks.device)
        found.update(name=properties.name, memory_bytes=properties.total_memory)
        found["base_bytes"] = properties.total_memory - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
    else:
        found.update(name=processor(), memory_bytes=psutil.virtual_memory().total)
    return found


def _local_world(ranks: Ranks) -> int:
    """Ranks of this node; a launcher that does not say has started them all here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))


def _local_group(world: int, local_world: int) -> ProcessGroup | None:
    """The group of this node's ranks; None where that is all of them."""
    import torch.distributed as dist

    if world == local_world:
        return None
    nodes = [dist.new_group(list(range(first, first + local_world))) for first in range(0, world, local_world)]
    return nodes[dist.get_rank() // local_world]


def assemble(worlds: dict[int, dict[str, Any]]) -> Machine:
    """One profile from what each number of ranks per node found."""
    from fgmoe_dist.planning.profile import Machine

    first = worlds[min(worlds)]
    internode = first["internode"]
    return Machine(
        name=first["name"],
        device=first["device"],
        cores=cores(),
        memory_bytes=first["memory_bytes"],
        base_bytes=first["base_bytes"],
        pixels_per_s=first["pixels_per_s"],
        versions=versions("torch"),
        compute={world: found["compute"] for world, found in worlds.items()},
        links={world: found["links"] for world, found in worlds.items() if found["links"]},
        internode=internode,
        internode_source="measured" if internode else "unknown",
    )


def measure_pixels(budget_s: float) -> float:
    """Pixels of a training sample with four tasks that a loader process decodes and augments in a second."""
    import numpy as np
    import torch

    from fgmoe_dist.benches.timing import seconds_of
    from fgmoe_dist.data import codec
    from fgmoe_dist.data.augment import TrainTransform

    rng, size_hw = np.random.default_rng(0), (425, 560)
    blocks_hw = np.kron(rng.integers(0, 40, (17, 20)), np.ones((25, 28))).astype(np.uint8)
    stored = {
        "image": rng.integers(0, 255, (*size_hw, 3), dtype=np.uint8),
        "semseg": blocks_hw,
        "depth": rng.uniform(1, 9, size_hw).astype(np.float32),
        "normals": rng.integers(1, 255, (*size_hw, 3), dtype=np.uint8),
        "edge": (blocks_hw % 7 == 0).astype(np.uint8),
    }
    entries = {key: codec.encode(key, value) for key, value in stored.items()}
    transform = TrainTransform((448, 576), (0.5,) * 3, (0.25,) * 3, TASKS)

    def read() -> None:
        sample = {key: codec.decode(key, *entry) for key, entry in entries.items()}
        transform({"id": "0", **sample}, rng)

    return 448 * 576 / seconds_of(read, torch.device("cpu"), 4 * budget_s)


def _print(machine: Machine) -> None:
    print(f"{machine.name}; {machine.device}, {machine.memory_bytes / 2**30:.0f} GiB")
    for ranks, compute in machine.compute.items():
        fp32 = compute.rates["fp32"]
        experts = {kind: curve[-1][1] / 1e9 for kind, curve in fp32.items() if kind.startswith("experts:")}
        print(
            f"  {ranks} rank(s), {compute.threads} thread(s) each, fp32: product {fp32['matmul'][-1][1] / 1e9:.0f},"
            f" 3x3 convolution {fp32['conv3x3'][-1][1] / 1e9:.0f}, "
            + ", ".join(f"{kind} {rate:.0f}" for kind, rate in experts.items())
            + f" GFLOP/s; memory {fp32['stream'][0][1] / 1e9:.1f} GB/s; {compute.overhead_s * 1e6:.1f} us per operation"
        )
    wires = {f"{ranks} ranks": links for ranks, links in machine.links.items()}
    for where, links in {**wires, **({"between nodes": machine.internode} if machine.internode else {})}.items():
        both = ", ".join(
            f"{name} {link.latency_s * 1e6:.0f} us and {link.bytes_per_s / 1e9:.2f} GB/s"
            for name, link in (("all-to-all", links.all_to_all), ("all-reduce", links.all_reduce))
        )
        print(f"  {where}: {both}; {links.overlap:.0%} of an exchange goes on beside computation")
