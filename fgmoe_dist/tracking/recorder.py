"""The one place where a run's records are said. They go to the run folder, and sinks read them there.

with Recorder.start(folder, tags, model={"total": 1}) as recorder:
    recorder.metrics(20, {"loss": 1.25})
    recorder.pictures(20, {"expert_load": image_HW3})
    recorder.evaluation(20, {"depth": {"rmse": 0.5}})
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import psutil

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_png
from fgmoe_dist.metrics import Scores
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import create_sinks
from fgmoe_dist.tracking.tail import Tail

if TYPE_CHECKING:
    import numpy as np

STATUSES = ("FINISHED", "FAILED", "KILLED")


class Recorder:
    """Writes what it is told into the run folder and wakes the sinks' threads.

    Without a folder it does nothing: that of all ranks but the first.
    """

    def __init__(self, folder: RunFolder | None = None, tails: Sequence[Tail] = ()):
        self.folder, self._tails = folder, tails
        self._finished = folder is None

    @classmethod
    def start(cls, folder: RunFolder, tags: Mapping[str, str], **facts: Any) -> Recorder:
        """Begins, or goes on with, the run of this folder, whose configuration is there already.

        `tags` and `facts` become entries of `about.json`. The sinks are those that `config.yaml` names; one that
        does not answer is warned about and tried again later. UserError for settings of sinks that can never work.
        """
        sinks = create_sinks(folder, folder.settings())
        earlier = folder.about()
        # A name of its own, by which the run is found again in a store that the folder knows nothing of any more.
        identity = earlier.get("tags", {}).get("run_folder_id") or uuid.uuid4().hex
        folder.update_about(
            status="RUNNING",
            started=earlier.get("started", time.time()),
            process=_this_process(),
            tags={**tags, "run_folder_id": identity},
            **facts,
        )
        tails = [Tail(sink, folder) for sink in sinks]
        try:
            for tail in tails:
                tail.start()
        except UserError:
            folder.update_about(status="FAILED", ended=time.time())
            raise
        return cls(folder, tails)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of one step: a line of `metrics.jsonl`."""
        if self.folder is not None:
            self.folder.append(step, values)
            self._wake()

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """uint8 RGB images by name, `pictures/<step>/<name>.png`; to be called before that step's `evaluation`.

        The same name at many steps makes a film. What others have drawn into `RunFolder.pictures` goes with them.
        """
        if self.folder is not None:
            for name, image_HW3 in images.items():
                write_png(self.folder.pictures(step) / f"{name}.png", image_HW3)

    def evaluation(self, step: int, scores: Scores) -> None:
        """`{task: {metric: value}}`: `eval/<step>.json`. The step's pictures must be there by now."""
        if self.folder is not None:
            self.folder.write_evaluation(step, scores)
            self._wake()

    def about(self, **facts: Any) -> None:
        """Entries of `about.json`. Sinks read `tags`, `model` and `encoder` once, when they start."""
        if self.folder is not None:
            self.folder.update_about(**facts)

    def finish(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED. Only the first call counts, so an early end may be named."""
        assert status in STATUSES, status
        if self._finished:
            return
        self._finished = True
        self.folder.update_about(status=status, ended=time.time())
        for tail in self._tails:
            # A run that is being killed has a grace period of some 30 s for everything.
            tail.end(60 if status == "FINISHED" else 15)

    def where_to_look(self) -> list[str]:
        """What a person opens to see the run, a line per sink."""
        return [tail.sink.where_to_look() for tail in self._tails]

    def _wake(self) -> None:
        for tail in self._tails:
            tail.wake()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(_status_of(kind))


def check_places(run_dir: str | Path, settings: Mapping[str, Any]) -> None:
    """UserError where a run of these settings could not record itself; looked at before the work, writing nothing."""
    folder = RunFolder(run_dir)
    folder.check()
    create_sinks(folder, settings)


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether a run's process, as `about.json` names it, still lives; None where that cannot be known from here."""
    if not process or process.get("host") != platform.node():
        return None
    try:
        found = psutil.Process(process["pid"])
        # Not to the last digit: it is counted from the machine's start, which a clock that is set moves.
        return abs(found.create_time() - process["started"]) < 2 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _this_process() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _status_of(kind: type | None) -> str:
    """Errors are `Exception`s; what is not one (Ctrl-C, a signal, `sys.exit`) is somebody's wish."""
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"
