"""Training steps while other processes keep this machine's cores busy, with threads that spin long and soon sleep.

Each measurement is a fresh process; settings and loads take turns. A fair share of N cores beside as many busy
processes is half the quiet speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgmoe_dist.arguments import add_config, count
from fgmoe_dist.errors import UserError
from fgmoe_dist.machine import cores, processor, versions
from fgmoe_dist.threads import SPINS

# libgomp's own default, where there are no more threads than cores; and ours.
WAITS = {"library's default": "300000", "ours": SPINS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--burners", type=count, default=cores(), metavar="N", help="busy processes beside it (default: one per core)"
    )
    parser.add_argument("--steps", type=count, default=8, metavar="S", help="steps timed per process (default 8)")
    parser.add_argument("--rounds", type=count, default=3, metavar="R", help="processes of each kind (default 3)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[str, list[float]]] = {load: {name: [] for name in WAITS} for load in ("quiet", "busy")}
    for number in range(args.rounds):
        for load, seconds in found.items():
            with burning(args.burners if load == "busy" else 0):
                for name, spins in WAITS.items():
                    seconds[name].append(_step(args, spins))
                    print(f"  round {number + 1}, {load}, {name}: {seconds[name][-1]:.3f} s a step", flush=True)
    medians = {load: {name: statistics.median(values) for name, values in of.items()} for load, of in found.items()}
    for load, of in medians.items():
        told = ", ".join(f"{name} {value:.3f} s" for name, value in of.items())
        print(f"{load}: {told}; ratio {of[next(iter(WAITS))] / of['ours']:.2f}")
    return {
        "config": args.config, "set": args.set, "burners": args.burners, "steps": args.steps, "spins": WAITS,
        "machine": processor(), "versions": versions("torch"), "seconds_per_step": found, "median": medians,
    }  # fmt: skip


@contextmanager
def burning(number: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _step(args: argparse.Namespace, spins: str) -> float:
    """Median seconds of a step of one process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "step.json"
        program = [sys.executable, "-m", "fgmoe_dist.cli", "bench", "step", "--config", str(args.config)]
        command = [*program, "--ranks", "1", "--steps", str(args.steps), "--json", str(figures), *args.set]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        done = subprocess.run(command, env={**environment, "GOMP_SPINCOUNT": spins}, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"bench busy: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(figures.read_text())["layouts"][0]["measured"]["seconds"]
