"""Real runs in a real sqlite store, read back with MLflow's own client."""

import logging
import math
import threading

import pytest
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking import mlflow_run
from fgmoe_dist.tracking.mlflow_run import MLflowRun, NoRun, flatten, resolve_uri
from fgmoe_dist.tracking.run_folder import RunFolder

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder whose sqlite file has its tables already: making them takes seconds."""
    folder = tmp_path_factory.mktemp("runs")
    with start(RunFolder(folder / "first")):
        pass
    return folder


def start(folder, parameters=None, resume=False, uri="", experiment="tests", **tags):
    folder.create("seed: 1\n", resumed_step=0 if resume else None)
    return MLflowRun.start(folder, uri, experiment, folder.path.name, parameters or {}, tags, resume)


def client(store):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")


def history(store, run_id, name):
    return [(point.step, point.value) for point in client(store).get_metric_history(run_id, name)]


def test_a_run_is_recorded(store):
    folder = RunFolder(store / "whole")
    with start(folder, {"experts": {"top_k": 4, "split": 2}, "tasks": ["depth"]}, world="2") as run:
        run.log(10, {"loss": 1.5, "loss/depth": 0.5})
        run.log(20, {"loss": 1.25, "experts/load[0]": 1.0})
        run.log_evaluation(20, {"depth": {"rmse": 0.75}})
        picture = folder.pictures(20) / "room.png"
        Image.new("RGB", (8, 6), (9, 8, 7)).save(picture)
        run.log_pictures(20, [picture])
    found = client(store).get_run(folder.mlflow_run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "whole"
    assert found.data.params == {"experts.top_k": "4", "experts.split": "2", "tasks": "['depth']"}
    assert found.data.tags["world"] == "2"
    assert history(store, run.run_id, "loss") == [(10, 1.5), (20, 1.25)]
    assert found.data.metrics["experts/load_0_"] == 1.0 and found.data.metrics["eval/depth/rmse"] == 0.75
    artifacts = {entry.path for entry in client(store).list_artifacts(run.run_id)}
    assert artifacts == {"config.yaml", "eval", "images"}
    images = [entry.path for entry in client(store).list_artifacts(run.run_id, "images")]
    assert any(path.startswith("images/room+step+20+") for path in images)
    assert found.info.artifact_uri.startswith((store / "mlflow-artifacts").as_uri())


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_the_status_is_the_truth(store, error, status):
    folder = RunFolder(store / status / error.__name__)
    with pytest.raises(error), start(folder, uri=f"sqlite:///{store / 'mlflow.db'}"):
        raise error
    assert client(store).get_run(folder.mlflow_run_id).info.status == status


def test_a_resumed_run_goes_on_without_repeating(store):
    folder = RunFolder(store / "resumed")
    with pytest.raises(KeyboardInterrupt), start(folder, {"lr": 0.1, "steps": 30}) as run:
        for step in (10, 20):
            run.log(step, {"loss": float(step)})
        run.log_evaluation(20, {"depth": {"rmse": 1.0}})
        picture = folder.pictures(20) / "room.png"
        Image.new("RGB", (8, 6)).save(picture)
        run.log_pictures(20, [picture])
        raise KeyboardInterrupt
    first_id = folder.mlflow_run_id
    with start(folder, {"lr": 0.2, "steps": 30, "new": 1}, resume=True) as run:
        for step in (10, 20, 30):
            run.log(step, {"loss": float(step), "late": 1.0})
        Image.new("RGB", (8, 6)).save(folder.pictures(20) / "room.png")
        run.log_pictures(20, [picture])
    assert run.run_id == first_id
    assert history(store, first_id, "loss") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert [step for step, _ in history(store, first_id, "late")] == [10, 20, 30]
    found = client(store).get_run(first_id)
    assert found.data.params == {"lr": "0.1", "steps": "30", "new": "1"}
    assert found.data.tags["resumed.lr"] == "0.2" and "resumed.steps" not in found.data.tags
    assert found.info.status == "FINISHED"
    pictures = [entry.path for entry in client(store).list_artifacts(first_id, "images") if entry.path.endswith(".png")]
    assert len(pictures) == 1


def test_a_run_that_the_store_lost_goes_on_as_a_new_one(store, caplog):
    folder = RunFolder(store / "moved")
    folder.create("")
    folder.mlflow_run_id = "0" * 32
    with start(folder, resume=True) as run:
        pass
    assert client(store).get_run(run.run_id).data.tags["continues"] == "0" * 32
    assert folder.mlflow_run_id == run.run_id


def test_long_values_and_many_parameters(store):
    with start(RunFolder(store / "long"), {"text": "x" * 7000, **{f"p{i}": i for i in range(250)}}) as run:
        pass
    params = client(store).get_run(run.run_id).data.params
    assert len(params) == 251 and params["text"] == "x" * 5997 + "..."


def test_more_points_than_a_batch_and_values_that_are_not_finite(store):
    with start(RunFolder(store / "many")) as run:
        for step in range(50):
            run.log(step, {f"m{i}": float(i) for i in range(30)})
        run.log(50, {"bad": math.nan})
    assert [step for step, _ in history(store, run.run_id, "m29")] == list(range(50))
    assert len(history(store, run.run_id, "bad")) == 1


def test_a_server_that_fails_is_survived_and_caught_up_with(store, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_run, "RETRY_SECONDS", 0.01)
    with start(RunFolder(store / "hiccup")) as run:
        real, failures, recovered = run._client.log_batch, [], threading.Event()

        def flaky(run_id, **batch):
            if len(failures) < 3:
                failures.append(1)
                raise ConnectionError("server away")
            real(run_id, **batch)
            recovered.set()

        run._client.log_batch = flaky
        run.log(1, {"loss": 1.0})
        assert recovered.wait(20)
        run.log(2, {"loss": 2.0})
    assert history(store, run.run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert len([record for record in caplog.records if "server away" in record.message]) == 1


def test_a_server_that_is_not_there_costs_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with start(RunFolder(tmp_path / "a"), uri="http://127.0.0.1:9") as run:
        run.log(1, {"loss": 1.0})
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("training goes on" in message for message in messages)
    assert any("misses 2 entries" in message for message in messages)
    assert run.where_to_look() == "http://127.0.0.1:9"


def test_a_picture_that_is_gone_does_not_block_the_rest(store):
    with start(RunFolder(store / "gone")) as run:
        run.log_pictures(1, [store / "nowhere.png"])
        run.log_evaluation(1, {"depth": {"rmse": 1.0}})
    found = client(store).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert [entry.path for entry in client(store).list_artifacts(run.run_id, "eval")] == ["eval/1.json"]


def test_where_to_look_names_the_store_and_the_run(store):
    with start(RunFolder(store / "look")) as run:
        line = run.where_to_look()
    assert f"-m mlflow ui --backend-store-uri sqlite:///{store / 'mlflow.db'}" in line
    assert line.endswith(f"/runs/{run.run_id}")


def test_none_means_no_tracking(tmp_path):
    with start(RunFolder(tmp_path / "a"), uri="none") as run:
        run.log(1, {"loss": 1.0})
    assert type(run) is NoRun and not (tmp_path / "mlflow.db").exists()
    assert run.folder.about()["status"] == "FINISHED"


@pytest.mark.parametrize("uri", ["none", ""])
def test_an_early_end_is_the_end_and_the_folder_knows(store, uri):
    folder = RunFolder(store / f"early{uri}")
    with start(folder, uri=uri, world="2") as run:
        assert folder.about() == {"status": "RUNNING", "tags": {"world": "2"}}
        run.finish("KILLED")
    assert folder.about()["status"] == "KILLED"
    if uri != "none":
        assert client(store).get_run(run.run_id).info.status == "KILLED"


def test_other_ranks_leave_no_trace():
    with NoRun() as run:
        run.log(1, {"loss": 1.0})
        run.log_evaluation(1, {})
        run.log_pictures(1, [])
        assert run.where_to_look() == ""


def test_a_uri_that_can_never_work_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="tracking.uri=mlruns"):
        start(RunFolder(tmp_path / "a"), uri="mlruns")


def test_a_deleted_experiment_is_the_users_error(store):
    with start(RunFolder(store / "del"), experiment="doomed") as run:
        pass
    client(store).delete_experiment(run.experiment_id)
    with pytest.raises(UserError, match="tracking.experiment=doomed"):
        start(RunFolder(store / "del2"), experiment="doomed")


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("", tmp_path / "runs" / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("sqlite:///x/y.db", tmp_path) == f"sqlite:///{tmp_path}/x/y.db"
    assert resolve_uri("https://host/mlflow", tmp_path) == "https://host/mlflow"


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}
