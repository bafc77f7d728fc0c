"""Seconds by stage and memory of real training steps, beside what `fgmoe plan` predicts for them.

Each layout (ranks, ep_size) runs in fresh processes on this machine. A step is one micro-batch per rank, of random
images unless --data config.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from fgmoe_dist.arguments import add_config, count
from fgmoe_dist.errors import UserError

if TYPE_CHECKING:
    from fgmoe_dist.config import Config
    from fgmoe_dist.planning.counts import Counts
    from fgmoe_dist.planning.profile import Machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_layout_arguments(parser)
    parser.add_argument(
        "--ep-size", type=count, nargs="+", metavar="E", help="default: 1 and as many as there are ranks"
    )
    parser.add_argument(
        "--data", choices=("synthetic", "config"), default="synthetic", help="random images, or the configuration's"
    )
    parser.add_argument("--against", type=Path, metavar="FILE", help="also predict, with this profile of the machine")


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=count, nargs="+", default=[1, 2, 4], metavar="R", help="numbers of ranks (default 1 2 4)"
    )  # fmt: skip
    parser.add_argument("--steps", type=count, default=8, metavar="S", help="steps timed per layout (default 8)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from fgmoe_dist.config import load_config
    from fgmoe_dist.planning.profile import read_machine

    config = load_config(args.config, args.set)
    machine = read_machine(args.against) if args.against else None
    layouts = step_layouts(args.ranks, config.routed.most_ranks, args.ep_size)
    synthetic = args.data == "synthetic"
    return {
        "config": args.config,
        "set": args.set,
        "data": args.data,
        "machine": machine.name if machine else None,
        **measure_layouts(config, layouts, args.steps, synthetic, machine),
    }


def step_layouts(ranks: Sequence[int], routed: int, ep_sizes: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """(ranks, ep_size) pairs that are possible; by default no expert parallelism, and all ranks in one group."""
    wanted = [(r, e) for r in sorted(set(ranks)) for e in sorted(set(ep_sizes or (1, r)))]
    layouts = [(r, e) for r, e in wanted if r % e == 0 and routed % e == 0]
    if not layouts:
        raise UserError(
            f"--ep-size {' '.join(map(str, ep_sizes or ()))}: none divides both the ranks and the {routed} routed"
            f" experts per task (experts.count x split)"
        )
    return layouts


def measure_layouts(
    config: Config, layouts: Sequence[tuple[int, int]], steps: int, synthetic: bool, machine: Machine | None
) -> dict[str, Any]:
    """Figures of every layout, printed as they come; with a machine, each beside its prediction."""
    from fgmoe_dist.ranks import quieten_deepspeed

    quieten_deepspeed()
    from fgmoe_dist.benches.measure_step import measure_step
    from fgmoe_dist.benches.ranks import on_ranks
    from fgmoe_dist.planning.trace import count

    configs = [step_config(config, *layout) for layout in layouts]  # mistakes before minutes of measuring
    counts = count(config) if machine else None
    found = []
    for (ranks, ep_size), one in zip(layouts, configs):
        entry = {"ranks": ranks, "ep_size": ep_size, "measured": on_ranks(ranks, measure_step, one, steps, synthetic)}
        if machine:
            entry["predicted"] = _predict(one, counts, ranks, machine, synthetic)
            entry["error"] = {key: _error(entry, key) for key in ("seconds", "memory_bytes")}
        found.append(entry)
        _print(entry)
    return {"layouts": found}


def step_config(config: Config, ranks: int, ep_size: int) -> Config:
    """`config` with one micro-batch per rank and step. UserError where it does not allow that ep_size."""
    from fgmoe_dist.planning.search import changed

    batch_size = config.train.micro_batch_size * ranks
    return changed(config, train={"batch_size": batch_size}, parallel={"ep_size": ep_size})


def _predict(config: Config, counts: Counts, ranks: int, machine: Machine, synthetic: bool) -> dict[str, Any]:
    from fgmoe_dist.planning.search import make_plan
    from fgmoe_dist.planning.times import STAGES, total

    plan = make_plan(config, lambda _: counts, 1, ranks, config.parallel.ep_size, machine, memory_bytes=float("inf"))
    parts = [part for part in plan.chosen.parts if not (synthetic and part.stage == "data")]
    return {
        "seconds": total(parts),
        "stages": {stage: total(parts, stage=stage) for stage in STAGES},
        "memory_bytes": plan.chosen.memory_bytes,
    }


def _error(entry: dict[str, Any], key: str) -> float:
    """By how much the prediction exceeds what was measured, as a share of the latter."""
    return entry["predicted"][key] / entry["measured"][key] - 1


def _print(entry: dict[str, Any]) -> None:
    measured, predicted = entry["measured"], entry.get("predicted")

    def pair(value: float, key: str, stage: str | None = None, unit: float = 1) -> str:
        text = f"{value / unit:.3f}"
        if predicted:
            text += f" ({(predicted[key] if stage is None else predicted['stages'][stage]) / unit:.3f})"
        return text

    stages = ", ".join(f"{stage} {pair(value, 'stages', stage)}" for stage, value in measured["stages"].items())
    print(
        f"  {entry['ranks']} rank(s), ep_size {entry['ep_size']}: {pair(measured['seconds'], 'seconds')} s per step"
        f" [{stages}], {pair(measured['memory_bytes'], 'memory_bytes', unit=2**30)} GiB per rank"
        + (" (predicted)" if predicted else ""),
        flush=True,
    )
