"""Tiny training runs for tests: a step takes a fraction of a second, everything on the road is the real thing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import yaml

from tests.ranks import run_ranks

# An untrained ViT-Ti on 7 x 9 patches, a decoder of 14 x 18 tokens.
SETTINGS = {
    "tasks": ["semseg", "depth", "normals", "edge"],
    "data": {"image_size": [112, 144], "workers": 0},
    "encoder": {"name": "vit_tiny_patch16_224", "weights": "none"},
    "decoder": {"channels": 16, "stride": 8, "mixer_depth": 1, "blocks": 2},
    "experts": {"count": 4, "split": 2, "hidden": 32, "top_k": 3, "shared": 1, "global_experts": 2},
    "train": {
        "steps": 4, "batch_size": 4, "micro_batch_size": 1, "lr": 1e-3, "clip_norm": 1.0, "log_every": 1,
        "checkpoint_every": 0, "pictures": 0, "loss_weights": {"normals": 10, "edge": 50},
    },
    "tracking": {"uri": "none"},
}  # fmt: skip


class Runs:
    """Run folders below `root`, all of one data set."""

    def __init__(self, root: Path, train: Path, val: Path):
        self.root, self.config_file = root, root / "tiny.yaml"
        data = {**SETTINGS["data"], "train": str(train), "val": str(val)}
        self.config_file.write_text(yaml.safe_dump({**SETTINGS, "data": data}))

    def folder(self, name: str) -> Path:
        return self.root / name

    def overrides(self, name: str, changes: dict[str, Any]) -> list[str]:
        """`key=value` for `--set`; dots in keys are written as `__`."""
        return [f"run.dir={self.folder(name)}"] + [
            f"{key.replace('__', '.')}={value}" for key, value in changes.items()
        ]

    def config(self, name: str = "run", **changes: Any):
        from fgmoe_dist.config import load_config

        return load_config(self.config_file, self.overrides(name, changes))

    def train(self, name: str, world: int, resume: str = "auto", **changes: Any) -> list[dict]:
        """Trains on forked gloo ranks; the lines of metrics.jsonl."""
        run_ranks(world, train_on_rank, self.config_file, self.overrides(name, changes), resume)
        return self.metrics(name)

    def metrics(self, name: str) -> list[dict]:
        from fgmoe_dist.tracking.run_folder import RunFolder

        return RunFolder(self.folder(name)).metrics()


def train_on_rank(config_file: Path, overrides: list[str], resume: str) -> None:
    from fgmoe_dist.training.loop import train

    train(trainer_on_rank(config_file, overrides), resume)


def trainer_on_rank(config_file: Path, overrides: list[str]):
    from fgmoe_dist.config import load_config
    from fgmoe_dist.training.trainer import Trainer

    return Trainer(load_config(config_file, overrides), this_rank())


def this_rank():
    """What `fgmoe_dist.ranks.process_group` gave, inside `run_ranks`."""
    import torch
    import torch.distributed as dist

    from fgmoe_dist.ranks import Ranks

    return Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))


def losses(lines: list[dict], after: int = 0, until: Optional[int] = None) -> list[float]:
    """The losses of the logged steps beyond `after`, all of a step's in a row."""
    chosen = [line for line in lines if line["step"] > after and (until is None or line["step"] <= until)]
    return [value for line in chosen for key, value in sorted(line.items()) if key == "loss" or key.startswith("loss/")]


# Runs under real launchers.

ROOT = Path(__file__).resolve().parents[1]


def environment(**variables: str) -> dict[str, str]:
    """The caller's, without what makes a process a rank; one thread a rank, as the launchers' own default."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in ours and not key.startswith("SLURM")}
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "VENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **fixed, **variables}


COMMANDS = {
    "torchrun": ["bash", "launchers/torchrun.sh"],
    "deepspeed": ["bash", "launchers/deepspeed.sh"],
    "python": [sys.executable, "fgmoe_dist/train.py"],
    "fgmoe": [sys.executable, "-m", "fgmoe_dist.cli", "train"],
}


def start(launcher: str, runs: Runs, name: str, world: int = 1, gpus: str = "", **changes: Any) -> subprocess.Popen:
    """Starts training as a user would, on CPUs unless `gpus` names some; output goes to `<run folder>.log`."""
    arguments = ["--config", str(runs.config_file)]
    for override in runs.overrides(name, changes):
        arguments += ["--set", override]
    with open(runs.folder(f"{name}.log"), "ab") as log:
        return subprocess.Popen(
            [*COMMANDS[launcher], *arguments], cwd=ROOT,
            env=environment(NPROC=str(world), CUDA_VISIBLE_DEVICES=gpus),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def finish(process: subprocess.Popen, runs: Runs, name: str, timeout: float = 240) -> list[dict]:
    """Waits for exit 0; the lines of metrics.jsonl."""
    try:
        code = process.wait(timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, runs.folder(f"{name}.log").read_text()[-4000:]
    return runs.metrics(name)


def fgmoe(*words: object) -> str:
    """What a command line prints, in a process of its own; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "fgmoe_dist.cli", *map(str, words)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
