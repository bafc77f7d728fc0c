"""What a run folder becomes in a real sqlite store."""

from __future__ import annotations

import json
import logging
import math
import time

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking import mlflow_store, tail
from fgmoe_dist.tracking.mlflow_store import resolve_uri
from fgmoe_dist.tracking.recorder import check_places
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import create_sinks
from tests.tracking.stores import PICTURE, client, history, names_of, pictures, run_of, start

mlflow = pytest.importorskip("mlflow")


def test_a_run_is_recorded(store):
    folder, settings = RunFolder(store / "whole"), {"experts": {"top_k": 4, "split": 2}, "tasks": ["depth"]}
    with start(folder, settings, tags={"world": "2"}, model={"total": 7}, encoder={"source": "none"}) as run:
        run.metrics(10, {"loss": 1.5, "loss/depth": 0.5})
        run.metrics(20, {"loss": 1.25, "experts/load[0]": 1.0})
        run.pictures(20, {"room": PICTURE})
        run.evaluation(20, {"depth": {"rmse": 0.75}})
    found = run_of(folder, store)
    assert found.info.status == "FINISHED" and found.info.run_name == "whole"
    assert found.data.params == {
        "experts.top_k": "4", "experts.split": "2", "tasks": "['depth']", "model.total": "7", "encoder.source": "none",
    }  # fmt: skip
    assert found.data.tags["world"] == "2"
    assert (found.data.tags["run.name"], found.data.tags["tracking.experiment"]) == ("whole", "tests")
    assert history(store, found.info.run_id, "loss") == [(10, 1.5), (20, 1.25)]
    assert found.data.metrics["experts/load_0_"] == 1.0 and found.data.metrics["eval/depth/rmse"] == 0.75
    artifacts = {entry.path for entry in client(store).list_artifacts(found.info.run_id)}
    assert artifacts == {"config.yaml", "eval", "images"}
    assert [entry.path for entry in client(store).list_artifacts(found.info.run_id, "eval")] == ["eval/20.json"]
    assert pictures(store, found.info.run_id) == [("room", 20)]
    assert found.info.artifact_uri.startswith((store / "mlflow-artifacts").as_uri())


def test_points_and_runs_are_as_old_as_the_folder_says(store, monkeypatch):
    clock = iter([1000.0, 1010.0, 1020.0])
    folder = RunFolder(store / "old")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        run = start(folder, uri="none")
        run.metrics(1, {"loss": 1.0})
        run.finish("KILLED")
    settings = {"tracking": {"uri": "", "experiment": "tests"}}
    (sink,) = create_sinks(folder, settings)
    sink.catch_up()
    found = run_of(folder, store)
    assert (found.info.start_time, found.info.end_time) == (1_000_000, 1_020_000)
    (point,) = client(store).get_metric_history(found.info.run_id, "loss")
    assert point.timestamp == 1_010_000


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_the_status_is_the_truth(store, error, status):
    folder = RunFolder(store / status / error.__name__)
    with pytest.raises(error), start(folder, uri=f"sqlite:///{store / 'mlflow.db'}"):
        raise error
    assert run_of(folder, store).info.status == status == folder.about()["status"]


@pytest.mark.parametrize("cursor", ["whole", "lost", "behind"])
def test_a_resumed_run_goes_on_without_repeating(store, cursor):
    """Further back than it had come; whatever the cursor knows, each point is there once."""
    folder = RunFolder(store / f"resumed-{cursor}")
    with pytest.raises(KeyboardInterrupt), start(folder, {"lr": 0.1, "steps": 30}) as run:
        for step in (10, 20):
            run.metrics(step, {"loss": float(step)})
        run.pictures(20, {"room": PICTURE})
        run.evaluation(20, {"depth": {"rmse": 1.0}})
        raise KeyboardInterrupt
    first_id = folder.mlflow_run_id
    if cursor == "lost":
        folder.cursor_file.unlink()
    if cursor == "behind":  # killed between a send and its note
        (entry,) = json.loads(folder.cursor_file.read_text()).items()
        entry[1].update(status="", steps={"loss": 10}, pictures={})
        folder.cursor_file.write_text(json.dumps(dict([entry])))
    with start(folder, {"lr": 0.2, "steps": 30, "new": 1}, resume=True) as run:
        for step in (10, 20, 30):
            run.metrics(step, {"loss": float(step), "late": 1.0})
        run.pictures(20, {"room": PICTURE, "late": PICTURE})
        run.evaluation(20, {"depth": {"rmse": 1.0, "late": 2.0}})
    assert folder.mlflow_run_id == first_id
    assert history(store, first_id, "loss") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert [step for step, _ in history(store, first_id, "late")] == [10, 20, 30]
    assert history(store, first_id, "eval/depth/rmse") == [(20, 1.0)]
    assert history(store, first_id, "eval/depth/late") == [(20, 2.0)]
    found = run_of(folder, store)
    assert (found.data.params["lr"], found.data.params["steps"], found.data.params["new"]) == ("0.1", "30", "1")
    assert found.data.tags["resumed.lr"] == "0.2" and "resumed.steps" not in found.data.tags
    assert found.info.status == "FINISHED"
    assert pictures(store, first_id) == [("late", 20), ("room", 20)]


def test_a_run_says_running_until_it_ends(store):
    folder = RunFolder(store / "running")
    with start(folder) as run:
        assert run_of(folder, store).info.status == "RUNNING"
        run.finish("KILLED")
    assert run_of(folder, store).info.status == "KILLED"
    with start(folder, resume=True):
        assert run_of(folder, store).info.status == "RUNNING"


def test_a_cursor_that_is_sure_is_not_doubted(store, monkeypatch):
    folder = RunFolder(store / "sure")
    with start(folder) as run:
        run.metrics(1, {"loss": 1.0})
    asked = []
    monkeypatch.setattr(mlflow.MlflowClient, "get_metric_history", lambda *_: asked.append(1))
    (sink,) = create_sinks(folder, folder.settings())
    assert sink.catch_up() == 0 and not asked


def test_a_run_that_the_store_lost_goes_on_as_a_new_one(store, caplog):
    folder = RunFolder(store / "moved")
    folder.create("")
    folder.mlflow_run_id = "0" * 32
    with start(folder, resume=True):
        pass
    assert folder.mlflow_run_id != "0" * 32
    assert run_of(folder, store).data.tags["continues"] == "0" * 32
    assert "has no run 0000" in caplog.text


def test_a_folder_that_lost_its_id_finds_its_run(store):
    folder = RunFolder(store / "forgetful")
    with start(folder) as run:
        run.metrics(1, {"loss": 1.0})
    first_id = folder.mlflow_run_id
    folder.cursor_file.unlink()
    (folder.path / "mlflow_run_id").unlink()
    (sink,) = create_sinks(folder, folder.settings())
    sink.catch_up()
    assert folder.mlflow_run_id == first_id and history(store, first_id, "loss") == [(1, 1.0)]
    assert names_of(store).count("forgetful") == 1


def test_a_fresh_start_is_another_run(store):
    folder = RunFolder(store / "fresh")
    ids = []
    for _ in range(2):
        with start(folder) as run:
            run.metrics(1, {"loss": 1.0})
        ids.append(folder.mlflow_run_id)
    assert ids[0] != ids[1] and history(store, ids[1], "loss") == [(1, 1.0)]


def test_long_values_and_many_parameters(store):
    folder = RunFolder(store / "long")
    with start(folder, {"text": "x" * 7000, **{f"p{i}": i for i in range(250)}}):
        pass
    params = run_of(folder, store).data.params
    assert len(params) == 251 and params["text"] == "x" * 5997 + "..."


def test_more_points_than_a_batch_and_values_that_are_not_finite(store):
    folder = RunFolder(store / "many")
    with start(folder) as run:
        for step in range(50):
            run.metrics(step, {f"m{i}": float(i) for i in range(30)})
        run.metrics(50, {"bad": math.nan})
    assert [step for step, _ in history(store, folder.mlflow_run_id, "m29")] == list(range(50))
    ((step, value),) = history(store, folder.mlflow_run_id, "bad")
    assert step == 50 and math.isnan(value)


def test_an_answer_that_was_lost_makes_no_doubles(store, monkeypatch):
    """The store has taken the batch, but the sender heard of a failure."""
    monkeypatch.setattr(tail, "RETRY_SECONDS", 0.01)
    folder, real, failures = RunFolder(store / "hiccup"), mlflow.MlflowClient.log_batch, []

    def deaf(self, run_id, **batch):
        real(self, run_id, **batch)
        if batch.get("metrics") and not failures:
            failures.append(1)
            raise ConnectionError("no answer")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", deaf)
    with start(folder) as run:
        for step in range(1, 4):
            run.metrics(step, {"loss": float(step), "images_per_second": 1.0})
    assert failures
    for name in ("loss", "images_per_second"):
        assert [step for step, _ in history(store, folder.mlflow_run_id, name)] == [1, 2, 3]


def test_a_server_that_is_not_there_costs_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tail, "RETRY_SECONDS", 0.01)
    with start(RunFolder(tmp_path / "a"), uri="http://127.0.0.1:9") as run:
        run.metrics(1, {"loss": 1.0})
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len([message for message in messages if "training goes on" in message]) == 1
    assert any("is behind" in message for message in messages)
    assert run.where_to_look() == ["http://127.0.0.1:9"]


def test_a_picture_that_cannot_be_read_does_not_block_the_rest(store, caplog):
    folder = RunFolder(store / "gone")
    with start(folder) as run:
        (folder.pictures(1) / "half.png").write_bytes(b"\x89PNG")
        run.pictures(1, {"room": PICTURE})
        run.evaluation(1, {"depth": {"rmse": 1.0}})
    assert run_of(folder, store).info.status == "FINISHED"
    assert pictures(store, folder.mlflow_run_id) == [("room", 1)] and "half.png: cannot be read" in caplog.text
    assert history(store, folder.mlflow_run_id, "eval/depth/rmse") == [(1, 1.0)]


def test_where_to_look_names_the_store_and_the_run(store):
    folder = RunFolder(store / "look")
    with start(folder) as run:
        (line,) = run.where_to_look()
    assert f"-m mlflow ui --backend-store-uri sqlite:///{store / 'mlflow.db'}" in line
    assert line.endswith(f"/runs/{folder.mlflow_run_id}?workflowType=machine_learning")


def test_a_uri_that_can_never_work_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="tracking.uri=mlruns"):
        start(RunFolder(tmp_path / "a"), uri="mlruns")


def test_a_deleted_experiment_is_the_users_error(store):
    with start(RunFolder(store / "del"), experiment="doomed"):
        pass
    client(store).delete_experiment(client(store).get_experiment_by_name("doomed").experiment_id)
    folder = RunFolder(store / "del2")
    with pytest.raises(UserError, match="tracking.experiment=doomed"):
        start(folder, experiment="doomed")
    assert folder.about()["status"] == "FAILED"


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("", tmp_path / "runs" / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("sqlite:///x/y.db", tmp_path) == f"sqlite:///{tmp_path}/x/y.db"
    assert resolve_uri("https://host/mlflow", tmp_path) == "https://host/mlflow"


@pytest.mark.parametrize(
    ("name", "clean"), [("experts/load[0]", "experts/load_0_"), ("a/../b//c", "a/b/c"), ("größe", "gr__e"), ("..", "_")]
)
def test_names_are_what_mlflow_takes(name, clean):
    assert mlflow_store.clean_name(name) == clean


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///  ", "sqlite:a.db", "a.db", "file:///x", "ftp://x"]
)
def test_what_names_no_store_is_refused(tmp_path, uri):
    with pytest.raises(UserError, match="tracking.uri=.*MLflow takes"):
        resolve_uri(uri, tmp_path)


@pytest.mark.parametrize("place", ["/proc/x/m.db", "{}", "{}/file/m.db", "/proc/version"])
def test_a_file_that_can_be_no_store_is_told_before_the_run(tmp_path, place):
    (tmp_path / "file").write_text("")
    settings = {"tracking": {"uri": f"sqlite:///{place.format(tmp_path)}"}}
    with pytest.raises(UserError, match=r"tracking.uri=.*(cannot be written|is a folder|is write-protected)"):
        check_places(tmp_path / "run", settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    check_places(tmp_path / "run", {"tracking": {"uri": f"sqlite:///{tmp_path}/new/m.db"}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
