"""Checkpoints written while training goes on.

The step stops for `take_snapshot` alone, which gathers what ZeRO has spread and copies it to host memory. A thread of
each rank then writes that rank's file; only when all ranks' files are on the disk does rank 0 give the checkpoint its
name. The threads agree among themselves after every stage, over a group of their own, so that a checkpoint is there for
all ranks or failed for all ranks, and which of them failed is known to every one.
"""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional

import torch.distributed as dist
from safetensors import SafetensorError

from fgmoe_dist.checkpoints.checkpoint import Snapshot, buffers_of, bytes_of, take_snapshot, write_snapshot
from fgmoe_dist.checkpoints.engine import Engine
from fgmoe_dist.checkpoints.folder import CheckpointState, partial_folder, publish
from fgmoe_dist.checkpoints.space import check_room
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import TIMEOUT, RankLost

# What a failing or cancelled run still gives a checkpoint under way. Launchers kill 30 s after they have asked.
GRACE_SECONDS = 20


class CheckpointWriter:
    """Writes the checkpoints of one run into `folder`, keeping the newest `keep` and the best.

    All ranks construct it, and call `save` and `wait` alike. Leaving its context waits for the checkpoint under way,
    after an error only a while and without complaint. `say` is told of each checkpoint that is there, on rank 0.
    """

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None] = lambda line: None):
        self.folder, self.keep, self.say = folder, keep, say
        # Not the default group: two threads must not share one. gloo, as NCCL would queue behind the step's kernels.
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._thread: Optional[threading.Thread] = None
        self._outcome: str | BaseException = ""

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(GRACE_SECONDS)

    def save(self, engine: Engine, state: CheckpointState) -> None:
        """Starts writing `folder/step-...`, once the one before is there; returns when the next step may begin."""
        self.wait()
        started = time.perf_counter()
        snapshot = take_snapshot(engine)
        state = replace(state, buffers=[name for name, _ in buffers_of(engine.module)])
        stopped = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._run, args=(snapshot, state, stopped), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises what `wait` would if the latest checkpoint has failed already. Never waits.

        When a rank learns of it is a matter of chance: to stop together, ask rank 0's alone and tell the others.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when no checkpoint is under way. UserError, on every rank, if the latest could not be written.

        RankLost, likewise, if that is our mistake; the traceback has been printed by the rank that made it.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if dist.get_rank() == 0:
            self.say(self._outcome)

    def _run(self, snapshot: Snapshot, state: CheckpointState, stopped: float) -> None:
        """The thread."""
        started = time.perf_counter()
        try:
            self._write(snapshot, state)
            seconds = time.perf_counter() - started
            self._outcome = (
                f"checkpoint of step {state.step}: training stood still {stopped:.2f} s, written in {seconds:.2f} s"
            )
        except BaseException as error:
            self._outcome = error

    def _write(self, snapshot: Snapshot, state: CheckpointState) -> None:
        first, partial = dist.get_rank() == 0, partial_folder(self.folder, state.step)
        try:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
            self._together(lambda: partial.mkdir(parents=True) if first else None)
            needed = sum(self._together(lambda: bytes_of(snapshot)))
            self._together(lambda: check_room(partial, needed) if first else None)
            written = self._together(lambda: write_snapshot(snapshot, partial))
            files = {name: checksum for of_rank in written for name, checksum in of_rank.items()}
            self._together(lambda: publish(partial, replace(state, files=files), self.keep) if first else None)
        except BaseException:
            if first:  # it may have filled the disk
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """Does this rank's part of a stage, then waits for the others'; what each gave. Raises on all if any failed."""
        done, fault = None, None
        try:
            done = work()
        except BaseException as error:
            fault = error
        foreseen = isinstance(fault, (OSError, SafetensorError))
        told: list = [None] * dist.get_world_size()
        mine = (done, fault and (foreseen, " ".join(str(fault).split())))
        dist.all_gather_object(told, mine, group=self._group)
        rank = next((rank for rank, (_, found) in enumerate(told) if found), None)
        if rank is None:
            return [given for given, _ in told]
        foreseen, what = told[rank][1]
        if foreseen:
            raise UserError(
                f"checkpoints {self.folder}: rank {rank} could not write one ({what}); make room or make the folder"
                f" writable, then the same command goes on from the last whole one"
            )
        if rank == dist.get_rank():  # told here: another rank may end this process before its main thread learns of it
            traceback.print_exception(type(fault), fault, fault.__traceback__)
        raise RankLost(
            f"checkpoints {self.folder}: rank {rank} failed to write one ({what}), which is no fault of the disk's"
        )
