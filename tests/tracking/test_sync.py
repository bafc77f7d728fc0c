"""Runs that could not send themselves: killed, offline, of an older version; several, and twice."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys

import pytest

from fgmoe_dist.cli import main
from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sync import sync
from tests.runs import ROOT, environment
from tests.tracking.stores import PICTURE, client, history, names_of, pictures, run_of, start

pytest.importorskip("mlflow")


def record(folder: RunFolder, steps=(10, 20), uri="none", **changes) -> RunFolder:
    """A run that has come to its end."""
    with start(folder, uri=uri, **changes) as run:
        for step in steps:
            run.metrics(step, {"loss": float(step)})
            run.pictures(step, {"room": PICTURE})
            run.evaluation(step, {"depth": {"rmse": 1.0 / step}})
    return folder


def uri_of(folder) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def everything(folder: RunFolder, store):
    run_id = folder.mlflow_run_id
    return history(store, run_id, "loss"), history(store, run_id, "eval/depth/rmse"), pictures(store, run_id)


WHOLE = [(10, 10.0), (20, 20.0)], [(10, 0.1), (20, 0.05)], [("room", 10), ("room", 20)]

KILLED = """
import os, signal, sys
from fgmoe_dist.tracking.run_folder import RunFolder
from tests.tracking.stores import PICTURE, start

run = start(folder := RunFolder(sys.argv[1]))
run.metrics(10, {"loss": 10.0})
run._tails[0].wake = lambda: None  # what comes now is not sent any more
run.metrics(20, {"loss": 20.0})
run.pictures(10, {"room": PICTURE})
run.evaluation(10, {"depth": {"rmse": 0.1}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_was_killed_is_brought_to_its_end(store):
    folder = RunFolder(store / "killed")
    done = subprocess.run([sys.executable, "-c", KILLED, folder.path], cwd=ROOT, env=environment(), timeout=120)
    assert done.returncode == -9
    assert (folder.about()["status"], run_of(folder, store).info.status) == ("RUNNING", "RUNNING")
    (found,) = sync(folder)
    assert (found.status, found.note) == ("KILLED", "had been killed") and found.sent
    assert (folder.about()["status"], run_of(folder, store).info.status) == ("KILLED", "KILLED")
    expected = [(10, 10.0), (20, 20.0)], [(10, 0.1)], [("room", 10)]
    assert everything(folder, store) == expected
    last = client(store).get_metric_history(folder.mlflow_run_id, "loss")[-1].timestamp
    assert run_of(folder, store).info.end_time == last, "nobody knows of a later moment"
    (again,) = sync(folder)
    assert (again.sent, again.note) == (0, "") and everything(folder, store) == expected


def test_a_run_without_tracking_is_sent_once(store):
    folder = record(RunFolder(store / "offline"), experiment="elsewhere", tags={"world": "2"}, model={"total": 5})
    with pytest.raises(UserError, match="offline: was trained with tracking.uri=none; name a store with --uri"):
        sync(folder)
    for expected in (True, False):
        (found,) = sync(folder, uri_of(store), "tests")
        assert bool(found.sent) == expected and everything(folder, store) == WHOLE
    run = run_of(folder, store)
    assert run.info.status == "FINISHED" and run.info.run_name == "offline"
    assert run.data.tags["world"] == "2" and run.data.params["model.total"] == "5"
    assert names_of(store).count("offline") == 1


def test_a_copy_that_comes_again_makes_no_second_run(store, tmp_path):
    """As rsync leaves it: what the first sync had noted in the folder is gone."""
    far, here = record(RunFolder(tmp_path / "copied"), steps=(10,)), store / "copied"
    for steps in ((), (10, 20)):
        if steps:
            with start(far, uri="none", resume=True) as run:
                for step in steps:
                    run.metrics(step, {"loss": float(step)})
                    run.pictures(step, {"room": PICTURE})
                    run.evaluation(step, {"depth": {"rmse": 1.0 / step}})
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(far.path, here)
        sync(RunFolder(here), uri_of(store), "tests")
    assert everything(RunFolder(here), store) == WHOLE and names_of(store).count("copied") == 1


def test_two_stores_know_it_and_its_own_stays_its_own(store, tmp_path):
    folder = record(RunFolder(tmp_path / "both"), uri="")
    own_id = folder.mlflow_run_id
    for expected in (True, False):
        (found,) = sync(folder, uri_of(store), "tests")
        assert bool(found.sent) == expected and folder.mlflow_run_id == own_id
    assert everything(folder, tmp_path) == WHOLE and names_of(store).count("both") == 1
    with start(folder, uri="", resume=True) as run:
        run.metrics(30, {"loss": 30.0})
    assert history(tmp_path, own_id, "loss")[-1] == (30, 30.0) and names_of(tmp_path) == ["both"]
    (found,) = sync(folder, uri_of(store), "tests")
    assert found.sent and names_of(store).count("both") == 1


def test_an_old_folder_is_compared_with_what_the_store_has(store):
    """Without a cursor, times, identity or process, of a run whose last lines and status were never sent."""
    folder = record(RunFolder(store / "older"), uri="")
    run_id = folder.mlflow_run_id
    folder.cursor_file.unlink()
    (folder.path / "about.json").write_text('{"status": "RUNNING", "tags": {"world": "2"}, "model": {"total": 5}}')
    lines = [{"step": step, "loss": float(step)} for step in (10, 20, 30)]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = sync(folder)
    assert found.status == "RUNNING" and "if it does not, add --ended" in found.note
    (found,) = sync(folder, ended=True)
    assert found.status == "KILLED" == run_of(folder, store).info.status and folder.mlflow_run_id == run_id
    losses, scores, series = everything(folder, store)
    assert losses == [(10, 10.0), (20, 20.0), (30, 30.0)] and (scores, series) == WHOLE[1:]


def test_a_run_that_lives_sends_for_itself(store, tmp_path):
    folder = RunFolder(store / "lives")
    with start(folder) as run:
        run.metrics(10, {"loss": 10.0})
        (found,) = sync(folder)
        assert (found.sent, found.status) == (0, "RUNNING") and "sends by itself" in found.note
        with pytest.raises(UserError, match="lives, so that --ended is wrong"):
            sync(folder, ended=True)
        (found,) = sync(folder, uri_of(tmp_path), "tests")
        assert found.sent and names_of(tmp_path) == ["lives"] and "still runs" in found.note
    assert run_of(folder, store).info.status == "FINISHED"


def test_a_run_on_another_machine_is_left_alone_until_it_is_said_to_have_ended(store):
    folder = RunFolder(store / "far")
    with start(folder) as run:
        process = folder.about()["process"]
        assert process["host"] == platform.node()
        run.metrics(10, {"loss": 10.0})
    folder.update_about(status="RUNNING", process={**process, "host": "node17"})
    (found,) = sync(folder)
    assert found.sent == 0 and "on node17, which cannot be seen from here" in found.note
    (found,) = sync(folder, ended=True)
    assert found.status == "KILLED" == run_of(folder, store).info.status


def test_the_verb_takes_several_and_goes_on_past_a_damaged_one(store, tmp_path, capsys):
    folders = [record(RunFolder(tmp_path / "runs" / name)) for name in ("a", "b", "c")]
    folders[1].config_file.write_text("{")
    record(RunFolder(tmp_path / "d"))
    arguments = [str(tmp_path / "runs"), str(tmp_path / "d"), "--uri", uri_of(store), "--experiment", "several"]
    for sent in (True, False):
        with pytest.raises(SystemExit) as ending, pytest.MonkeyPatch.context() as patch:
            patch.setattr("os._exit", lambda code: sys.exit(code))
            main(["sync", *arguments, "--json", str(tmp_path / "done.json")])
        assert ending.value.code == 2 and "b/config.yaml: cannot be read" in capsys.readouterr().err
        done = json.loads((tmp_path / "done.json").read_text())
        assert [each["run"] for each in done] == [str(tmp_path / name) for name in ("runs/a", "runs/c", "d")]
        assert all(bool(each["sent"]) == sent and each["status"] == "FINISHED" for each in done)
        assert names_of(store, "several") == ["a", "c", "d"]


def test_a_store_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9: "):
        sync(record(RunFolder(tmp_path / "a")), "http://127.0.0.1:9")
