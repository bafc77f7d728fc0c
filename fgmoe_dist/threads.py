"""How many threads a process computes with, and what they do while they wait. Imported before torch, so without it.

libgomp, which torch computes with on Linux, lets a thread that waits spin 300,000 times before it sleeps. On a machine
that does other work as well, each wait then costs a scheduler's turn: a step takes ten times as long. 1000 spins, its
own choice where there are more threads than cores, cost nothing measurable on a quiet machine (`fgmoe bench busy`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SPINS = "1000"


def calm(environment: MutableMapping[str, str]) -> None:
    """Has threads of libraries that are loaded from now on sleep soon, unless a person has said how they wait."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def share_cores(environment: Mapping[str, str], local_world: int) -> str:
    """Sets the threads of this process, unless somebody has chosen them. Returns a line on them for a run's log."""
    import torch

    why = "its share of the cores"
    if chosen := _chosen(environment):
        why = f"as {chosen} says"
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    return f"threads: {torch.get_num_threads()} a rank, {why}"


def _chosen(environment: Mapping[str, str]) -> str:
    """The variable by which a person, a launcher's script or SLURM has chosen; none: empty."""
    if "OMP_NUM_THREADS" in environment and not _is_torchruns(environment):
        return f"OMP_NUM_THREADS={environment['OMP_NUM_THREADS']}"
    if "SLURM_CPUS_PER_TASK" in environment:
        return f"SLURM_CPUS_PER_TASK={environment['SLURM_CPUS_PER_TASK']}"
    return ""


def _is_torchruns(environment: Mapping[str, str]) -> bool:
    """torchrun sets 1 where nobody has chosen: then its own environment, that of our parent, has none."""
    if environment["OMP_NUM_THREADS"] != "1" or "TORCHELASTIC_RUN_ID" not in environment:
        return False
    try:
        return b"OMP_NUM_THREADS=" not in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return True
