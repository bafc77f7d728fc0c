"""A rank that is killed, a run that is asked to stop: both end promptly, and go on as if nothing had happened."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from fgmoe_dist.checkpoints.folder import find_checkpoint, read_state
from tests.runs import Runs, finish, losses, start

pytestmark = pytest.mark.dist

STEPS, EVERY = 24, 4
SETTINGS = dict(
    tasks="[semseg, normals]", train__steps=STEPS, train__checkpoint_every=EVERY, train__keep_checkpoints=9,
    experts__noise=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(nyud_shards, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), nyud_shards.train, nyud_shards.val)


@pytest.fixture(scope="module")
def unbroken(runs) -> list[dict]:
    return runs.train("unbroken", 2, parallel__ep_size=2, **SETTINGS)


def wait_for_step(process, runs: Runs, name: str, step: int, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not any(line["step"] >= step for line in runs.metrics(name)):
        assert process.poll() is None, runs.folder(f"{name}.log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    """A zombie is dead; where nobody reaps orphans it stays listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_rank(launcher, rank: int) -> list[psutil.Process]:
    """SIGKILLs one rank; every process that the launcher had started."""
    family = psutil.Process(launcher.pid).children(recursive=True)
    ranks = [p for p in family if any(word.endswith("fgmoe_dist/train.py") for word in p.cmdline()[1:3])]
    (victim,) = [p for p in ranks if p.environ().get("RANK") == str(rank)]
    victim.kill()
    return family


def mlflow_status(folder: Path) -> str:
    from mlflow import MlflowClient

    run_id = (folder / "mlflow_run_id").read_text().strip()
    return MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}").get_run(run_id).info.status


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(runs, unbroken, launcher):
    changes = dict(SETTINGS, parallel__ep_size=2, tracking__uri="", data__workers=1)
    job = start(launcher, runs, launcher, world=2, **changes)
    wait_for_step(job, runs, launcher, EVERY + 2)
    family = kill_rank(job, rank=1)
    assert job.wait(timeout=60) != 0
    deadline = time.monotonic() + 15
    while left := [process for process in family if is_alive(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert mlflow_status(runs.folder(launcher)) in ("FAILED", "KILLED")
    reached = runs.metrics(launcher)[-1]["step"]
    assert EVERY < reached < STEPS
    checkpoints = runs.folder(launcher) / "checkpoints"
    (checkpoints / f".step-{reached:08d}.partial").mkdir(exist_ok=True)  # as if it had died while writing

    lines = finish(start(launcher, runs, launcher, world=2, **changes), runs, launcher)
    assert "going on from" in runs.folder(f"{launcher}.log").read_text()
    assert not list(checkpoints.glob(".*"))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert losses(lines) == pytest.approx(losses(unbroken), rel=1e-6)
    assert mlflow_status(runs.folder(launcher)) == "FINISHED"


def test_a_file_asks_it_to_stop(runs):
    changes = dict(SETTINGS, tracking__uri="")
    job = start("python", runs, "stopped", **changes)
    wait_for_step(job, runs, "stopped", 2)
    (runs.folder("stopped") / "stop").touch()
    reached = finish(job, runs, "stopped")[-1]["step"]
    assert reached < STEPS
    assert mlflow_status(runs.folder("stopped")) == "KILLED"
    checkpoints = runs.folder("stopped") / "checkpoints"
    assert read_state(find_checkpoint(checkpoints)).step == reached and not list(checkpoints.glob(".*"))
    assert not (runs.folder("stopped") / "stop").exists()
    assert "the same command goes on" in runs.folder("stopped.log").read_text()

    lines = runs.train("stopped", 1, **changes)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert mlflow_status(runs.folder("stopped")) == "FINISHED"


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (2, dict(parallel__ep_size=1, parallel__zero_stage=0)),
        (4, dict(parallel__ep_size=4, parallel__zero_stage=2)),
        (1, dict(parallel__ep_size=1, parallel__zero_stage=1)),
    ],
    ids=["ep1-zero0", "four-ranks-ep4-zero2", "one-rank"],
)
def test_any_other_layout_goes_on_alike(runs, world, layout):
    # The balance loss weighs the load of the micro-batches computed at one time, which another world changes.
    alike = dict(SETTINGS, experts__balance_weight=0, train__steps=7)
    if not runs.folder("start").exists():
        runs.train("start", 2, parallel__ep_size=2, **alike)
    checkpoint = runs.folder("start") / f"checkpoints/step-{EVERY:08d}"
    name = f"{world}-{layout['parallel__ep_size']}"
    lines = runs.train(name, world, resume=str(checkpoint), **{**alike, **layout})
    assert [line["step"] for line in lines] == [5, 6, 7]
    assert losses(lines) == pytest.approx(losses(runs.metrics("start"), after=EVERY), rel=1e-5)
