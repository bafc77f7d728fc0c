"""Threads: whose choice counts, and that nobody's is overridden."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fgmoe_dist.threads import calm, share_cores

SHOW = "import fgmoe_dist, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in __import__('sys').modules)"
RANK = "from fgmoe_dist.threads import share_cores; import os; print(share_cores(os.environ, 1))"
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def said_by(code: str, without: tuple[str, ...], **given: str) -> str:
    """What a fresh interpreter prints, without the variables that begin so."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    done = subprocess.run([sys.executable, "-c", code], env={**environment, **given}, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_sleep_soon_unless_a_person_has_said_how_they_wait(given, spins):
    assert said_by(SHOW, ("OMP_", "GOMP_"), **given) == f"{spins} False", "and torch is not loaded yet"


def test_a_choice_is_kept():
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    calm(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("given", [{"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}, {"SLURM_CPUS_PER_TASK": "4"}])
def test_threads_that_somebody_has_chosen_stay(given, two_threads):
    line = share_cores(given, 1)
    ((name, value),) = given.items()
    assert torch.get_num_threads() == 2 and line == f"threads: 2 a rank, as {name}={value} says"


@pytest.mark.parametrize(("local_world", "threads"), [(1, CORES), (CORES, 1), (2 * CORES, 1)])
def test_ranks_share_the_cores(local_world, threads, two_threads):
    assert share_cores({}, local_world) == f"threads: {threads} a rank, its share of the cores"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("parents", "kept"), [({"OMP_NUM_THREADS": "1"}, True), ({}, False)])
def test_the_1_that_torchrun_sets_is_nobody_s_choice(parents, kept):
    """Whose it is, the environment of torchrun tells, whose place an interpreter takes here."""
    start = f"""
import os, subprocess, sys
environment = dict(os.environ, OMP_NUM_THREADS="1", TORCHELASTIC_RUN_ID="x")
subprocess.run([sys.executable, "-c", {RANK!r}], env=environment)
"""
    told = said_by(start, ("OMP_", "SLURM_"), **parents)
    assert told == ("threads: 1 a rank, as OMP_NUM_THREADS=1 says" if kept else
                    f"threads: {CORES} a rank, its share of the cores")  # fmt: skip
