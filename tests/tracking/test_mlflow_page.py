"""What a person sees first in MLflow: scores, the experiment's view, a run's note, its sets of images."""

from __future__ import annotations

import json

from fgmoe_dist.tracking.mlflow_page import VIEW_TAG, headline_scores, note, view
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import create_sinks
from tests.tracking.stores import client, history, run_of, start

HEADLINES = {
    "semseg": {"metric": "mIoU", "lower_is_better": False, "scale": 1.0},
    "depth": {"metric": "rmse", "lower_is_better": True, "scale": 100.0},
}
SCORES = {"semseg": {"mIoU": 40.0, "other": 1.0}, "depth": {"rmse": 0.5}}
DATA = {
    "training": {"name": "nyud", "split": "train", "images": 795, "digest": "a" * 32, "where": "shards/train"},
    "validation": {"name": "nyud", "split": "val", "images": 654, "digest": "b" * 32, "where": "shards/val"},
}
SETTINGS = {"decoder": {"kind": "mlore"}, "encoder": {"name": "vit"}, "tasks": ["semseg", "depth"]}


def test_scores_are_headlines_and_their_signed_mean():
    found = headline_scores(HEADLINES, SCORES)
    assert found == {"score/semseg": 40.0, "score/depth": 0.5, "score/mean": (40 - 100 * 0.5) / 2}
    assert headline_scores(HEADLINES, {"semseg": {"mIoU": float("nan")}, "depth": {}}) == {}
    assert headline_scores({}, SCORES) == {}


def test_a_view_keeps_the_columns_that_earlier_runs_brought():
    first = view(["semseg", "depth"], None)
    columns = json.loads(first)["selectedColumns"]
    assert columns[:3] == ["metrics.`score/mean`", "metrics.`score/semseg`", "metrics.`score/depth`"]
    assert "params.`decoder.kind`" in columns and view(["depth"], first) == first
    both = json.loads(view(["edge"], first))["selectedColumns"]
    assert set(both) == {*columns, "metrics.`score/edge`"}
    sections = [section["name"] for section in json.loads(first)["compareRunSections"]]
    assert sections == ["score", "loss", "eval"]
    assert json.loads(view(["semseg"], "not json"))["orderByKey"] == "metrics.`score/mean`"


def test_a_note_says_what_a_run_is_how_good_and_how_it_was_made():
    about = {"headlines": HEADLINES, "data": DATA, "model": {"trained": 1234567}, "tags": {"command": "fgmoe train"},
             "changed": {"train.lr": 0.1, "odd": "a|b"}}  # fmt: skip
    told = note(about, SETTINGS, 20, SCORES)
    for part in ("Decoder **mlore** for semseg, depth on frozen vit.", "1,234,567 parameters", "train of nyud: 795",
                 "At step 20: semseg mIoU 40 (higher is better), depth rmse 0.5 (lower is better).", "-5.",
                 "\n    fgmoe train", "| `train.lr` | 0.1 |", "| `odd` | a/b |"):  # fmt: skip
        assert part in told
    assert note({}, {}, None, {}) == "Decoder **?** for  on frozen ?."


def test_a_store_has_them(store):
    folder = RunFolder(store / "page")
    facts = {"headlines": HEADLINES, "data": DATA, "tags": {"user": "ada", "command": "fgmoe train", "git_commit": "c"}}
    with start(folder, SETTINGS, experiment="paged", **facts) as run:
        run.evaluation(20, SCORES)
    found, store_client = run_of(folder, store), client(store)
    assert history(store, found.info.run_id, "score/mean") == [(20, -5.0)]
    assert history(store, found.info.run_id, "score/depth") == [(20, 0.5)]
    tags = found.data.tags
    assert (tags["mlflow.user"], tags["mlflow.source.name"], tags["mlflow.source.git.commit"]) == (
        "ada", "fgmoe train", "c")  # fmt: skip
    assert tags["mlflow.note.content"].startswith("Decoder **mlore**") and "At step 20" in tags["mlflow.note.content"]
    inputs = {entry.tags[0].value: entry.dataset for entry in found.inputs.dataset_inputs}
    assert {use: (of.name, of.digest) for use, of in inputs.items()} == {
        use: (of["name"], of["digest"]) for use, of in DATA.items()
    }
    experiment = store_client.get_experiment(found.info.experiment_id)
    assert "metrics.`score/depth`" in json.loads(experiment.tags[VIEW_TAG])["selectedColumns"]
    # A person's own words stay, and nothing is sent twice.
    store_client.set_tag(found.info.run_id, "mlflow.note.content", "My best one")
    (sink,) = create_sinks(folder, folder.settings())
    sink.catch_up()
    found = run_of(folder, store)
    assert found.data.tags["mlflow.note.content"] == "My best one" and len(found.inputs.dataset_inputs) == 2
