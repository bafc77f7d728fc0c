"""Tags that say where a run came from: code, machine, launcher, job."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Mapping

import torch

from fgmoe_dist import plugins
from fgmoe_dist.machine import device_name


def run_tags(world: int, ep_size: int) -> dict[str, str]:
    """Tags of the running job. What is not known (no git, no SLURM) is left out.

    `git_dirty` looks at tracked files only: run folders and data beside the code do not count.
    """
    tags = {
        **_git(Path(__file__).parent),
        "world": str(world),
        "ep_size": str(ep_size),
        "launcher": launcher(os.environ),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", ""),
        "torch": torch.__version__,
        "deepspeed": _version("deepspeed"),
        "python": platform.python_version(),
        "device": device_name(),
        "host": platform.node(),
        "user": _user(),
        "command": shlex.join(sys.argv),
        "plugins": ", ".join(map(str, plugins.loaded())),
    }
    return {name: value for name, value in tags.items() if value}


def launcher(environment: Mapping[str, str]) -> str:
    """`torchrun`, `deepspeed`, `srun` or `python`, from what each leaves in the environment.

    torchrun and deepspeed are asked first: on a cluster they run below srun and inherit its variables.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun"
    if "CROSS_RANK" in environment and "CROSS_SIZE" in environment:
        return "deepspeed"
    if "SLURM_SRUN_COMM_HOST" in environment:  # unlike SLURM_PROCID, absent from the batch script itself
        return "srun"
    return "python"


def _git(folder: Path) -> dict[str, str]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": "true" if changed else "false"}
    except (OSError, subprocess.SubprocessError):
        return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container without an entry for this user
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
