import json
import math
import os
import time

import pytest

from fgmoe_dist.errors import CannotWrite, UserError
from fgmoe_dist.tracking.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.create("seed: 1\n")
    return folder


def test_metrics_are_lines_of_json(folder):
    folder.append(20, {"loss": 1.5, "loss/depth": math.nan, "grad_norm": math.inf})
    folder.append(40, {"loss": 1.25})
    first, second = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert first.startswith('{"step": 20, "loss": 1.5, "loss/depth": null, "grad_norm": null, "time": ')
    assert abs(json.loads(second).pop("time") - time.time()) < 60
    assert folder.metrics()[1] == {"step": 40, "loss": 1.25}


def test_metrics_are_read_from_where_reading_has_ended(folder):
    folder.append(10, {"loss": 1.0})
    entries, offset = folder.metrics_after(0)
    assert [entry["step"] for entry in entries] == [10] and folder.metrics_after(offset) == ([], offset)
    path = folder.path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 20, "loss"')
    assert folder.metrics_after(offset) == ([], offset), "half a line"
    with open(path, "a") as file:
        file.write(": 0.5}\n")
    os.utime(path, (7, 7))
    assert folder.metrics_after(offset) == ([{"step": 20, "loss": 0.5, "time": 7.0}], path.stat().st_size)


def test_times_outlive_a_resume(folder):
    (folder.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0, "time": 9.5}\n')
    os.utime(folder.path / "metrics.jsonl", (7, 7))
    folder.create("", resumed_step=2)
    assert [entry["time"] for entry in folder.metrics_after(0)[0]] == [7.0, 9.5]


def test_resuming_drops_what_comes_again(folder):
    for step in (10, 20, 30):
        folder.append(step, {"loss": step})
        folder.write_evaluation(step, {"depth": {"rmse": step / 100}})
        (folder.pictures(step) / "x.png").write_bytes(b"x")
    folder.mlflow_run_id = "abc"
    folder.update_about(status="KILLED")
    RunFolder(folder.path).create("seed: 2\n", resumed_step=20)
    assert [entry["step"] for entry in folder.metrics()] == [10, 20]
    assert folder.evaluations() == {10: {"depth": {"rmse": 0.1}}, 20: {"depth": {"rmse": 0.2}}}
    assert folder.picture_files(30) == [] and [path.name for path in folder.picture_files(20)] == ["x.png"]
    assert sorted(path.name for path in (folder.path / "pictures").iterdir()) == ["10", "20"]
    assert (folder.path / "config.yaml").read_text() == "seed: 2\n"
    assert folder.mlflow_run_id == "abc" and folder.about() == {"status": "KILLED"}


def test_a_fresh_start_keeps_only_checkpoints(folder):
    folder.append(0, {"loss": 1})
    folder.write_evaluation(0, {"depth": {"rmse": 1.0}})
    folder.mlflow_run_id = "abc"
    folder.cursor_file.write_text("{}")
    folder.update_about(status="FAILED")
    folder.checkpoints.mkdir()
    folder.create("seed: 2\n")
    assert (folder.metrics(), folder.evaluations(), folder.about(), folder.mlflow_run_id) == ([], {}, {}, None)
    assert folder.checkpoints.is_dir() and not folder.cursor_file.exists()


def test_a_torn_last_line_is_dropped(folder):
    folder.append(10, {"loss": 1.0})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "lo')
    assert folder.metrics() == [{"step": 10, "loss": 1.0}]
    folder.create("", resumed_step=10)
    folder.append(20, {"loss": 0.5})
    assert [entry["step"] for entry in folder.metrics()] == [10, 20]


def test_evaluations_are_ordered_by_number(folder):
    for step in (1000, 200, 30):
        folder.write_evaluation(step, {"semseg": {"mIoU": float("nan")}})
    assert list(folder.evaluations()) == [30, 200, 1000]
    assert folder.evaluations()[30] == {"semseg": {"mIoU": None}}


def test_about_merges(folder):
    folder.update_about(status="RUNNING", tags={"world": "2"})
    folder.update_about(status="FINISHED")
    assert folder.about() == {"status": "FINISHED", "tags": {"world": "2"}}


def test_nothing_half_written_is_left(folder):
    folder.update_about(status="RUNNING")
    assert not [path for path in folder.path.rglob("*") if path.name.endswith(".part")]


def test_a_folder_that_cannot_be_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run.dir=.*file"):
        RunFolder(tmp_path / "file" / "a").create("")


def test_what_somebody_laid_into_a_run_stays(folder):
    for name in ("eval/notes.json", "eval/\u00b2.json", "pictures/30/x.txt", "pictures/album/x.png"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("mine")
    (folder.pictures(30) / "x.png").write_bytes(b"ours")
    folder.write_evaluation(30, {})
    folder.create("")
    left = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*.*") if path.is_file()}
    assert left == {
        ".fgmoe",
        "config.yaml",
        "eval/notes.json",
        "eval/\u00b2.json",
        "pictures/30/x.txt",
        "pictures/album/x.png",
    }


DAMAGE = {
    "config.yaml: cannot be read": ("config.yaml", b"- a\n- b\n", RunFolder.settings),
    "config.yaml: cannot be read;": ("config.yaml", b"a: \x80", RunFolder.settings),
    "config.yaml: its run is no section": ("config.yaml", b"run: [a]\n", RunFolder.settings),
    "config.yaml: its tracking is no section": ("config.yaml", b"tracking: null\n", RunFolder.settings),
    "about.json: is not what a run writes": ("about.json", b"[1]", RunFolder.about),
    "about.json: is no valid JSON": ("about.json", b"{", RunFolder.about),
    "eval/4.json: is not what a run writes": ("eval/4.json", b'{"depth": 1}', RunFolder.evaluations),
    "eval/4.json: is not what a run": ("eval/4.json", b"[]", RunFolder.evaluations),
    "metrics.jsonl: holds a line without a step": ("metrics.jsonl", b"junk\n", RunFolder.metrics),
    "metrics.jsonl: holds a line without": ("metrics.jsonl", b"[1]\n", RunFolder.metrics),
    "metrics.jsonl: holds a line": ("metrics.jsonl", b'{"step": "1"}\n', RunFolder.metrics),
    "metrics.jsonl: holds": ("metrics.jsonl", b"\xff\n", RunFolder.metrics),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_file_that_is_not_what_a_run_writes_is_named(folder, fault):
    name, content, read = DAMAGE[fault]
    (folder.path / name).parent.mkdir(exist_ok=True)
    (folder.path / name).write_bytes(content)
    with pytest.raises(UserError, match=fault) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_a_disk_that_is_full_is_told_in_a_line(folder):
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CannotWrite, match="metrics.jsonl: cannot be written .No space left"):
        folder.append(1, {"loss": 1.0})


def test_image_sums_of_later_steps_go_with_their_scores_or_without(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.create("run: {name: a}")
    for step in (1, 2, 3):
        folder.image_sums_file(step).parent.mkdir(exist_ok=True)
        folder.image_sums_file(step).write_bytes(b"")
    folder.write_evaluation(2, {})
    folder.create("run: {name: a}", resumed_step=1)
    assert sorted(path.name for path in (tmp_path / "a" / "eval").iterdir()) == ["1.npz"]
