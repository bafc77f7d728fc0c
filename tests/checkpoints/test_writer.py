"""Checkpoints in the background: what is written is the moment of saving, and a failure costs nothing saved before."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fgmoe_dist.checkpoints import writer as background
from fgmoe_dist.checkpoints.folder import drop_partial, find_checkpoint, partial_folder, read_state
from fgmoe_dist.checkpoints.writer import CheckpointWriter
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import RankLost
from fgmoe_dist.tracking.run_folder import RunFolder
from tests.checkpoints.test_checkpoint import engine_of, state_of, step, tensors_of
from tests.ranks import run_ranks

WORLD = 2  # so that every second step is one of the optimiser


def weights_of(engine) -> dict[str, np.ndarray]:
    return {f"{name}.weight": value.detach().clone().numpy() for name, value in engine.module.named_parameters()}


def train_while_writing(folder: Path, layout) -> tuple:
    go_on, write = threading.Event(), background.write_snapshot
    background.write_snapshot = lambda *arguments: go_on.wait(60) and write(*arguments)
    engine = engine_of(layout, seed=1)
    for number in (0, 1):
        step(engine, number)
    with CheckpointWriter(folder, keep=2) as writer:
        saved = weights_of(engine)
        writer.save(engine, state_of(layout, 1))
        for number in (2, 3):
            step(engine, number)
            writer.check()
        before = find_checkpoint(folder)
        go_on.set()
        writer.save(engine, state_of(layout, 3))  # waits for the one under way
        found = find_checkpoint(folder)
        later = weights_of(engine)
    return before, found, saved, later


@pytest.mark.parametrize("layout", [(2, 0), pytest.param((2, 2), marks=pytest.mark.slow)], ids=["zero0", "zero2"])
def test_steps_go_on_and_change_nothing_of_what_is_written(tmp_path, layout):
    before, found, saved, later = run_ranks(WORLD, train_while_writing, tmp_path, layout)[0]
    assert before is None and found.name == "step-00000001" and find_checkpoint(tmp_path).name == "step-00000003"
    for checkpoint, expected in ((found, saved), (tmp_path / "step-00000003", later)):
        tensors = tensors_of(checkpoint)
        replicated = [name for name in expected if ".bank." not in name]
        assert replicated and all(np.array_equal(tensors[name], expected[name]) for name in replicated)
        bank = expected["blocks.1.routed.bank.w_in_ECH.weight"]  # rank 0 holds experts 0 and 1 of each task
        assert np.array_equal(tensors["blocks.1.experts.1.0.w_in_ECH.weight"], bank[2])
    assert not np.array_equal(saved["first.weight.weight"], later["first.weight.weight"])


def fill_a_disk(folder: Path) -> list:
    import torch.distributed as dist

    engine, said = engine_of((2, 1), seed=1), []
    with CheckpointWriter(folder, keep=2, say=said.append) as writer:
        writer.save(engine, state_of((2, 1), 1))
        writer.wait()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        writer.save(engine, state_of((2, 1), 2))
        with pytest.raises(UserError) as error:
            writer.wait()
        dist.barrier()  # until rank 0 has cleared up
        left = sorted(path.name for path in folder.iterdir())
        dist.barrier()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.save(engine, state_of((2, 1), 3))
        writer.wait()
    return [str(error.value), left, said]


def test_a_rank_that_cannot_write_tells_all_and_loses_nothing(tmp_path):
    answers = run_ranks(WORLD, fill_a_disk, tmp_path)
    for message, left, _ in answers:
        assert "rank 1 could not write one" in message and "File too large" in message and "\n" not in message
        assert left == ["latest", "step-00000001"]
    assert read_state(find_checkpoint(tmp_path)).step == 3
    assert [line.split(":")[0] for line in answers[0][2]] == ["checkpoint of step 1", "checkpoint of step 3"]
    assert not any(said for *_, said in answers[1:])


def stumble_while_writing(folder: Path) -> list:
    """On rank 1 a mistake of ours, which no disk is to blame for."""
    import torch.distributed as dist

    from fgmoe_dist.ranks import from_first

    engine, told = engine_of((2, 1), seed=1), io.StringIO()
    if dist.get_rank() == 1:
        background.write_snapshot = lambda *_: {}["no such key"]
    with CheckpointWriter(folder, keep=2) as writer, contextlib.redirect_stderr(told):
        writer.save(engine, state_of((2, 1), 1))
        writer._thread.join()
        with pytest.raises(RankLost) as error:
            from_first(writer.check)
        writer._thread = None
    return [str(error.value), told.getvalue()]


def test_a_mistake_of_ours_ends_every_rank_and_is_told_once(tmp_path):
    (first, said), (second, traceback) = run_ranks(WORLD, stumble_while_writing, tmp_path, timeout=60)
    assert "rank 1 failed to write one ('no such key')" in first and "make room" not in first and said == ""
    assert "rank 0 has failed" in second and traceback.count("KeyError: 'no such key'") == 1
    assert find_checkpoint(tmp_path) is None


def leave_while_writing(folder: Path) -> None:
    write = background.write_snapshot
    background.write_snapshot = lambda *arguments: time.sleep(0.5) or write(*arguments)
    with contextlib.suppress(SystemExit), CheckpointWriter(folder, keep=2) as writer:
        writer.save(engine_of((2, 1), seed=1), state_of((2, 1), 1))
        sys.exit(143)  # as SIGTERM does


def test_a_job_told_to_end_makes_the_checkpoint_whole_first(tmp_path):
    run_ranks(WORLD, leave_while_writing, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def die_while_writing(folder: Path) -> None:
    import torch.distributed as dist

    engine = engine_of((2, 1), seed=1)
    with CheckpointWriter(folder, keep=2) as writer:
        writer.save(engine, state_of((2, 1), 1))
        writer.wait()
        if dist.get_rank() == 1:
            background.write_snapshot = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        writer.save(engine, state_of((2, 1), 2))
        writer.wait()


def test_a_rank_that_dies_leaves_no_checkpoint_and_no_hang(tmp_path):
    with pytest.raises(AssertionError, match="pair.cc"):
        run_ranks(WORLD, die_while_writing, tmp_path, timeout=60)
    assert find_checkpoint(tmp_path).name == "step-00000001"
    # Had rank 0 died too, this is what it would have left.
    partial_folder(tmp_path, 2).mkdir(exist_ok=True)
    drop_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_a_run_whose_checkpoints_cannot_be_written_ends_with_one_line(runs):
    RunFolder(runs.folder("run")).claim()
    (runs.folder("run") / "checkpoints").touch()  # where the folder should be
    with pytest.raises(AssertionError, match=r"UserError: checkpoints .*: rank 0 could not write one \(.*\n$"):
        runs.train("run", 1, train__steps=3, train__checkpoint_every=1)
    assert runs.metrics("run")[-1]["step"] <= 3
