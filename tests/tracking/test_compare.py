import argparse
import json

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking.compare import RunRecord, compare, read_folders, read_mlflow, to_json, to_markdown
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import create_sinks
from fgmoe_dist.verbs import compare as verb

MODEL = {"total": 1234567, "trained": 4321}


def make(path, top_k=4, rmse=0.5, status="FINISHED"):
    """A run folder as the trainer leaves it."""
    folder = RunFolder(path)
    folder.create(f"run: {{name: {path.name}, seed: 0}}\nexperts: {{top_k: {top_k}, split: 4}}\ntasks: [depth]\n")
    for step, rate in ((10, 1.0), (20, 8.0), (30, 9.0)):
        folder.append(step, {"loss": 1.0, "images_per_second": rate})
    folder.write_evaluation(10, {"depth": {"rmse": 9.0, "abs_rel": 0.3}})
    folder.write_evaluation(30, {"depth": {"rmse": rmse, "abs_rel": 0.2}})
    folder.update_about(
        status=status, tags={"world": "2"}, model=MODEL, encoder={"source": "hub"},
        headlines={"depth": {"metric": "rmse", "lower_is_better": True, "scale": 100.0}},
    )  # fmt: skip
    return folder


def cells(rows):
    return {row.name: row.cells for row in rows}


def test_folders_are_read_and_only_differences_shown(tmp_path):
    make(tmp_path / "a", top_k=4, rmse=0.5)
    make(tmp_path / "b", top_k=2, rmse=0.25)
    make(tmp_path / "broken", status="FAILED")
    records = read_folders([tmp_path])
    assert [record.name for record in records] == ["a", "b"]
    rows = compare(records)
    found = cells(rows)
    assert found["experts.top_k"] == ("4", "2")
    assert "experts.split" not in found and "run.name" not in found and "world" not in found
    assert found["depth rmse (lower is better)"] == ("0.5", "0.25")
    assert found["images per second"] == ("8", "8")
    assert found["total"] == ("1,234,567", "1,234,567")
    assert found["evaluated at step"] == ("30", "30")
    assert next(row for row in rows if row.name.startswith("depth")).best == {1}
    assert len(read_folders([tmp_path], unfinished=True)) == 3
    assert [record.status for record in read_folders([tmp_path / "broken"])] == ["FAILED"]


def test_higher_is_better_where_the_task_says_so_and_ties_have_no_winner():
    def record(name, value):
        return RunRecord(name, "FINISHED", {}, scores={"semseg": {"mIoU": value}}, images_per_second=2.0)

    rows = compare([record("a", 40.0), record("b", 41.5), record("c", None)])
    row = next(row for row in rows if row.section == "score")
    assert row.cells == ("40", "41.50", "-") and row.best == {1}
    assert next(row for row in rows if row.section == "speed").best == frozenset()


def test_the_gain_over_the_first_run_has_every_tasks_sign():
    def record(miou, rmse):
        return RunRecord("run", "FINISHED", {}, scores={"semseg": {"mIoU": miou}, "depth": {"rmse": rmse}})

    rows = compare([record(40.0, 0.5), record(44.0, 0.4), record(36.0, 0.55), record(None, 0.5)])
    # (+10 % + 20 %) / 2 and (-10 % - 10 %) / 2
    assert rows[-2].cells == ("0", "+15.00 %", "-10.00 %", "-")
    assert not [
        row for row in compare([record(0.0, 0.5), record(1.0, 0.5)]) if "gain" in row.name and row.cells[1] != "-"
    ]


def test_a_task_of_a_data_set_is_compared_as_its_run_recorded(tmp_path):
    for name, value in (("a", 3.0), ("b", 2.0)):
        folder = make(tmp_path / name)
        folder.write_evaluation(40, {"heat": {"mae": value, "rmse": 4.0}})
        folder.update_about(headlines={"heat": {"metric": "mae", "lower_is_better": True}})
    row, gain = [row for row in compare(read_folders([tmp_path])) if row.section == "score"]
    assert row.name == "heat mae (lower is better)" and row.best == {1}
    assert gain.cells == ("0", "+33.33 %")


def test_of_a_task_that_nobody_knows_no_run_is_called_better():
    runs = [RunRecord(name, "FINISHED", {}, scores={"heat": {"mae": v}}) for name, v in (("a", 3.0), ("b", 2.0))]
    (row,) = [row for row in compare(runs) if row.section == "score"]
    assert row.name == "heat mae" and row.best == frozenset()


def test_every_metric_on_request(tmp_path):
    make(tmp_path / "a")
    names = [row.name for row in compare(read_folders([tmp_path]), every_metric=True) if row.section == "score"]
    assert names == ["depth rmse (lower is better)", "depth abs_rel"]


def test_a_run_that_recorded_nothing_is_a_column_of_dashes(tmp_path):
    RunFolder(tmp_path / "young").create("{}")
    make(tmp_path / "a")
    found = cells(compare(read_folders([tmp_path], unfinished=True)))
    assert found["status"] == ("FINISHED", "unknown")
    assert found["depth rmse (lower is better)"] == ("0.5", "-") and found["images per second"] == ("8", "-")


def test_markdown_is_a_table_with_the_best_in_bold(tmp_path):
    make(tmp_path / "a", rmse=0.5)
    make(tmp_path / "b", rmse=0.25)
    records = read_folders([tmp_path])
    lines = to_markdown(records, compare(records)).splitlines()
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {"|", "-"}
    assert any("| 0.5 " in line and "| **0.25** " in line for line in lines)


def test_mlflow_tells_the_same_as_the_folder(tmp_path):
    folder = make(tmp_path / "a")
    (sink,) = create_sinks(folder, {**folder.settings(), "tracking": {"experiment": "tests"}})
    sink.catch_up()
    (record,) = read_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "tests")
    assert record == read_folders([tmp_path / "a"])[0]
    with pytest.raises(UserError, match="--experiment other"):
        read_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", "other")
    with pytest.raises(UserError, match="no such file"):
        read_mlflow(f"sqlite:///{tmp_path / 'nothing.db'}", "tests")
    (tmp_path / "notes.db").write_text("this is a text, and no database")
    with pytest.raises(UserError, match="no SQLite database"):
        read_mlflow(f"sqlite:///{tmp_path / 'notes.db'}", "tests")
    with pytest.raises(UserError, match="cannot be read"):
        read_mlflow("postgresql://nobody@localhost:1/nothing", "tests")


def test_the_verb(tmp_path, capsys):
    make(tmp_path / "runs" / "a")
    make(tmp_path / "runs" / "b", top_k=2)
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(tmp_path / "runs"), "--json", str(tmp_path / "c.json")]))
    assert "setting: experts.top_k" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["settings_that_differ"] == ["experts.top_k"]
    assert found["runs"][0]["scores"] == {"depth": {"rmse": 0.5, "abs_rel": 0.2}}
    with pytest.raises(UserError, match="no run folder"):
        verb.run(parser.parse_args([str(tmp_path / "nowhere")]))
    make(tmp_path / "late" / "x", status="KILLED")
    with pytest.raises(UserError, match="--unfinished"):
        verb.run(parser.parse_args([str(tmp_path / "late")]))


def test_json_holds_every_record(tmp_path):
    make(tmp_path / "a")
    records = read_folders([tmp_path])
    assert to_json(records, compare(records))["runs"][0]["model"] == MODEL


def record(name: str, rmse: float, **about) -> RunRecord:
    headlines = {"depth": {"metric": "rmse", "lower_is_better": True, "scale": 100.0}}
    settings = {"decoder.kind": about.pop("kind", "fgmoe")}
    return RunRecord(name, "FINISHED", settings, scores={"depth": {"rmse": rmse}}, headlines=headlines, **about)


def test_gains_are_over_the_single_task_run_or_the_one_that_is_named():
    records = [record("a", 0.5), record("single", 0.4, kind="single_task"), record("b", 0.2)]
    assert cells(compare(records))["mean gain over single (delta_m)"] == ("-25.00 %", "0", "+50.00 %")
    named = cells(compare(records, baseline="a"))
    assert named["mean gain over a (delta_m)"] == ("0", "+20.00 %", "+60.00 %")
    with pytest.raises(UserError, match="--baseline c: is none of the runs; name one of a, single, b"):
        compare(records, baseline="c")
    with pytest.raises(UserError, match="--baseline a: is the name of several runs"):
        compare([*records, record("a", 0.1)], baseline="a")


def test_of_two_validation_sets_no_run_is_called_better():
    alike = [record("a", 0.5, tags={"validation_set": "x" * 32}), record("b", 0.2, tags={"validation_set": "x" * 32})]
    apart = [alike[0], record("b", 0.2, tags={"validation_set": "y" * 32})]
    assert {row.name: row.best for row in compare(alike)}["depth rmse (lower is better)"] == {1}
    rows = {row.name: row for row in compare(apart)}
    assert not rows["depth rmse (lower is better)"].best and not any("gain" in name for name in rows)
    assert rows["validation set (no best among several)"].cells == ("xxxxxxxx", "yyyyyyyy")


def test_the_work_of_an_image_is_shown():
    records = [record("a", 0.5, work={"encoder_gflops": 210.1, "decoder_gflops": 78.06}), record("b", 0.2)]
    found = cells(compare(records))
    assert (found["encoder"], found["decoder"]) == (("210.10", "-"), ("78.06", "-"))


def test_settings_that_another_decoder_has_not_are_no_difference():
    first, second = record("a", 0.5), record("b", 0.2, kind="multi_task")
    first.settings.update({"experts.top_k": "4", "train.lr": "1"})
    second.settings.update({"train.lr": "2"})
    assert {row.name for row in compare([first, second]) if row.section == "setting"} == {"decoder.kind", "train.lr"}
