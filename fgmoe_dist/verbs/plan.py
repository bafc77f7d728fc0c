"""What a configuration needs on so many GPUs: memory per rank, bytes per link, seconds per step, best ep_size.

Needs neither GPUs nor data nor weights. Memory and bytes follow from the configuration; seconds from a profile of the
machine, which `fgmoe bench machine --json FILE` measures. Routing is taken to be even, unless --imbalance says more.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgmoe_dist.arguments import add_config, add_json, check_outputs
from fgmoe_dist.errors import UserError

if TYPE_CHECKING:
    from rich.columns import Columns
    from rich.table import Table

    from fgmoe_dist.config import Config
    from fgmoe_dist.planning.counts import Counts
    from fgmoe_dist.planning.profile import Machine
    from fgmoe_dist.planning.search import Candidate, Plan

LATENCY_US = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="G", help="ranks per node (default 1)")
    parser.add_argument("--ep-size", type=int, metavar="E", help="this one only; without, all that are possible")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="profile from fgmoe bench machine, for seconds")
    parser.add_argument("--memory-gib", type=float, metavar="M", help="memory of a rank (default: the machine's)")
    parser.add_argument(
        "--internode-gbps", type=float, metavar="B", help="gigabits per second of each rank between nodes, assumed"
    )
    parser.add_argument(
        "--internode-latency-us", type=float, metavar="U", help=f"of a message there, assumed (default {LATENCY_US})"
    )
    parser.add_argument(
        "--imbalance", type=float, default=1.0, metavar="X",
        help="routed slots of a group's busiest rank over the mean, a run's experts/rank_imbalance (default 1)",
    )  # fmt: skip
    add_json(parser, "every candidate's figures")


def run(args: argparse.Namespace) -> None:
    from fgmoe_dist.config import load_config
    from fgmoe_dist.files import write_json
    from fgmoe_dist.planning.search import make_plan

    check_outputs(args)
    config = load_config(args.config, args.set)
    _check(args)
    machine = _machine(args)
    plan = make_plan(
        config, _count, args.nodes, args.gpus_per_node, args.ep_size, machine,
        args.memory_gib * 2**30 if args.memory_gib else None, args.imbalance,
    )  # fmt: skip
    _print(config, plan, machine)
    if args.json:
        write_json(args.json, _figures(args, plan, machine))


def _check(args: argparse.Namespace) -> None:
    for option in ("memory_gib", "internode_gbps", "internode_latency_us"):
        value = getattr(args, option)
        if value is not None and not 0 < value < math.inf:  # nor NaN
            raise UserError(f"--{option.replace('_', '-')} {value:g}: must be above 0 and finite")
    if not 1 <= args.imbalance < math.inf:
        raise UserError(f"--imbalance {args.imbalance:g}: the busiest rank has at least the mean; give 1 or more")
    for option, value, other, missing in (
        ("--internode-gbps", args.internode_gbps, "--machine", args.machine is None),
        ("--internode-latency-us", args.internode_latency_us, "--internode-gbps", args.internode_gbps is None),
    ):
        if value is not None and missing:
            raise UserError(f"{option} {value:g}: says nothing without {other}; give that too, or leave it out")


def _count(config: Config) -> Counts:
    from fgmoe_dist.planning.trace import count

    return count(config)


def _machine(args: argparse.Namespace) -> Machine | None:
    from fgmoe_dist.planning.profile import Link, Links, read_machine

    if args.machine is None:
        return None
    machine = read_machine(args.machine)
    if args.internode_gbps is None:
        return machine
    link = Link((args.internode_latency_us or LATENCY_US) * 1e-6, args.internode_gbps * 1e9 / 8)
    return replace(machine, internode=Links(link, link), internode_source="assumed")


def _print(config: Config, plan: Plan, machine: Machine | None) -> None:
    import sys

    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
    placement, train = plan.chosen.placement, config.train
    accumulation = train.batch_size // (train.micro_batch_size * placement.world)
    console.print(
        f"{config.run.name}: {placement.world} ranks on {placement.nodes} node(s);"
        f" a step of {train.batch_size} images is {placement.world} x {train.micro_batch_size} x {accumulation};"
        f" {train.precision}, ZeRO {config.parallel.zero_stage}"
    )
    if machine:
        source = f"; links between nodes {machine.internode_source}" if placement.nodes > 1 else ""
        console.print(f"seconds as on {machine.name}{source}")
    console.print(_candidates(plan))
    for ep_size, reason in plan.left_out.items():
        console.print(f"left out: ep_size={ep_size}, {reason}")
    console.print(f"best: ep_size={plan.chosen.ep_size}, {plan.why}\n")
    console.print(_details(plan.chosen))


def _candidates(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(
        "", "ep_size", "copies of the experts", "memory per rank", "sent on a node", "sent beyond", "per step"
    )
    for candidate in plan.candidates:
        near, far = (sum(getattr(sent, way) for sent in candidate.traffic) for way in ("near", "far"))
        table.add_row(
            "*" if candidate is plan.chosen else "",
            str(candidate.ep_size),
            str(candidate.placement.copies),
            f"{candidate.memory_bytes / 2**30:.2f} GiB" + ("" if candidate.fits else ", too much"),
            f"{near / 2**20:.1f} MiB",
            f"{far / 2**20:.1f} MiB",
            "-" if candidate.seconds is None else f"{candidate.seconds:.4g} s",
        )
    return table


def _details(candidate: Candidate) -> Columns:
    """Three tables side by side: where a rank's memory goes, its traffic, and its time."""
    from rich.columns import Columns

    rows = [(name, f"{size / 2**30:.3f}") for name, size in candidate.memory.items()]
    tables = [_table(("memory of a rank", "GiB"), rows)]
    rows = [(sent.name, f"{sent.near / 2**20:.1f}", f"{sent.far / 2**20:.1f}") for sent in candidate.traffic]
    tables.append(_table(("sent in a step, MiB", "on a node", "beyond"), rows))
    if candidate.parts:
        rows = [(part.name, part.stage, f"{part.seconds:.4g}") for part in candidate.parts]
        tables.append(_table(("part of a step", "in", "s"), rows))
    return Columns(tables)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def _figures(args: argparse.Namespace, plan: Plan, machine: Machine | None) -> dict[str, Any]:
    return {
        "config": args.config,
        "set": args.set,
        "nodes": args.nodes,
        "gpus_per_node": args.gpus_per_node,
        "machine": machine.name if machine else None,
        "internode": machine.internode_source if machine else None,
        "memory_limit_bytes": plan.limit_bytes,
        "best_ep_size": plan.chosen.ep_size,
        "why": plan.why,
        "left_out": {str(ep_size): reason for ep_size, reason in plan.left_out.items()},
        "candidates": [
            {
                "ep_size": candidate.ep_size,
                "fits": candidate.fits,
                "seconds": candidate.seconds,
                "memory_bytes": candidate.memory_bytes,
                "memory": candidate.memory,
                "traffic": [asdict(sent) for sent in candidate.traffic],
                "parts": candidate.parts and [asdict(part) for part in candidate.parts],
            }
            for candidate in plan.candidates
        ],
    }
