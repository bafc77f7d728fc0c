"""What is said once is in the run folder, and the sinks are woken."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking import sinks
from fgmoe_dist.tracking.recorder import Recorder, is_alive
from fgmoe_dist.tracking.run_folder import RunFolder
from tests.tracking.stores import PICTURE, start


class Memory:
    """A sink of a few lines: reads the folder anew each time."""

    name = "memory"

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def catch_up(self):
        self.seen = [entry["step"] for entry in self.folder.metrics()], self.folder.about()["status"]
        return 1

    def where_to_look(self):
        return "here"


def test_everything_is_in_the_folder(tmp_path):
    folder = RunFolder(tmp_path / "a")
    with start(folder, uri="none", tags={"world": "2"}, model={"total": 3}) as recorder:
        recorder.metrics(1, {"loss": 1.0})
        recorder.pictures(1, {"room": PICTURE})
        recorder.evaluation(1, {"depth": {"rmse": 0.5}})
        recorder.about(note="x")
        about = folder.about()
        assert (about["status"], about["tags"]["world"], about["model"]) == ("RUNNING", "2", {"total": 3})
        assert recorder.where_to_look() == []
    assert folder.metrics() == [{"step": 1, "loss": 1.0}] and folder.evaluations() == {1: {"depth": {"rmse": 0.5}}}
    (picture,) = folder.picture_files(1)
    assert picture.name == "room.png" and np.array_equal(np.asarray(Image.open(picture)), PICTURE)
    assert (folder.about()["status"], folder.about()["note"]) == ("FINISHED", "x")
    assert not (tmp_path / "mlflow.db").exists() and not folder.cursor_file.exists()


def test_other_ranks_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Recorder() as recorder:
        recorder.metrics(1, {"loss": 1.0})
        recorder.pictures(1, {"room": PICTURE})
        recorder.evaluation(1, {})
        recorder.about(status="x")
        assert recorder.where_to_look() == []
        recorder.finish("KILLED")
    assert not list(tmp_path.iterdir())


def test_an_early_end_is_the_end(tmp_path):
    folder = RunFolder(tmp_path / "a")
    with start(folder, uri="none") as recorder:
        recorder.finish("KILLED")
    assert folder.about()["status"] == "KILLED"


def test_a_resumed_run_keeps_its_start_and_its_identity(tmp_path):
    folder = RunFolder(tmp_path / "a")
    abouts = []
    for resume in (False, True, False):
        with start(folder, uri="none", resume=resume):
            abouts.append(folder.about())
    first, again, fresh = abouts
    assert again["started"] == first["started"] < fresh["started"]
    assert again["tags"] == first["tags"] != fresh["tags"]


def test_a_sink_is_a_line_and_is_chosen_by_the_settings(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(sinks.SINKS, "memory", lambda folder, settings: made.append(Memory(folder)) or made[-1])
    folder = RunFolder(tmp_path / "a")
    folder.create("tracking: {sinks: [memory]}")
    with Recorder.start(folder, {}) as recorder:
        recorder.metrics(1, {"loss": 1.0})
        recorder.metrics(2, {"loss": 1.0})
        assert recorder.where_to_look() == ["here"]
    assert made[0].seen == ([1, 2], "FINISHED")
    folder.create("tracking: {sinks: [memroy]}")
    with pytest.raises(UserError, match="there is no memroy; choose among mlflow, memory"):
        Recorder.start(folder, {})


def test_a_process_is_alive_dead_or_unknown():
    import platform

    mine = {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    assert is_alive(mine) is True
    assert is_alive({**mine, "started": mine["started"] - 100}) is False  # the number is another's by now
    assert is_alive({**mine, "host": "elsewhere"}) is None and is_alive({}) is None
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert is_alive({**mine, "pid": gone.pid}) is False
