"""A checkpoint and the shards beside it: whoever puts the two together says whether they mean the same."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from fgmoe_dist.checkpoints.checkpoint import load_model
from fgmoe_dist.checkpoints.folder import find_checkpoint
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.errors import UserError
from fgmoe_dist.verbs.evaluate import _check_data
from tests.runs import Runs

TINY = dict(train__steps=1, train__batch_size=2, tasks="[semseg, edge]", decoder__blocks=1)


@pytest.fixture(scope="module")
def trained(nyud_shards, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("other"), nyud_shards.train, nyud_shards.val)
    runs.train("run", 1, **TINY)
    return runs


def permuted(index: dict) -> None:
    index["classes"]["semseg"][:2] = reversed(index["classes"]["semseg"][:2])


def more(index: dict) -> None:
    index["classes"]["semseg"].append("unicorn")
    index["survey"]["semseg"]["shares"].append(0.0)


def fewer(index: dict) -> None:
    index["classes"]["semseg"].pop()
    index["survey"]["semseg"]["shares"].pop()


def radius(index: dict) -> None:
    index["boundary_max_dist"] = 0.5


CHANGES = {
    permuted: "semseg: the same classes in another order: class 0 is",
    more: "semseg: 40 classes in the checkpoint, 41 in",
    fewer: "semseg: 40 classes in the checkpoint, 39 in",
    radius: "edge: max_dist is 0.011 in the checkpoint, max_dist is 0.5 in",
}


def changed(folder: Path, change, to: Path) -> Path:
    """A copy of some shards whose index says something else of the same pixels."""
    shutil.copytree(folder, to)
    index = json.loads((to / "index.json").read_text())
    change(index)
    (to / "index.json").write_text(json.dumps(index))
    return to


def both_changed(shards, change, folder: Path) -> dict[str, Path]:
    return {f"data__{split}": changed(getattr(shards, split), change, folder / split) for split in ("train", "val")}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_with_what_it_began_with(trained, nyud_shards, tmp_path, change):
    where = both_changed(nyud_shards, change, tmp_path)
    before = (trained.folder("run") / "metrics.jsonl").read_bytes()
    with pytest.raises(AssertionError, match=f"UserError: checkpoint .*{CHANGES[change]}.* another run.dir"):
        trained.train("run", 1, **{**TINY, "train__steps": 2}, **where)
    assert (trained.folder("run") / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", CHANGES)
def test_an_evaluation_scores_what_was_trained(trained, nyud_shards, tmp_path, change):
    _, config, info = load_model(find_checkpoint(trained.folder("run")))
    for same in (nyud_shards.val, changed(nyud_shards.val, lambda index: None, tmp_path / "a")):
        _check_data(argparse.Namespace(checkpoint="run", shards=same), config.tasks, info, ShardSet.open(same))
    other = changed(nyud_shards.val, change, tmp_path / "b")
    with pytest.raises(
        UserError, match=f"--checkpoint run: {CHANGES[change]}.* --shards {other}.*fgmoe score"
    ) as error:
        _check_data(argparse.Namespace(checkpoint="run", shards=other), config.tasks, info, ShardSet.open(other))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_a_run_does_not_train_may_differ(trained, nyud_shards, tmp_path):
    where = both_changed(nyud_shards, radius, tmp_path)
    tiny = {**TINY, "tasks": "[semseg]"}
    trained.train("semseg", 1, **tiny)
    trained.train("semseg", 1, **{**tiny, "train__steps": 2}, **where)


@pytest.mark.parametrize("change", [radius])
def test_training_and_validation_are_of_one_data_set(trained, nyud_shards, tmp_path, change):
    other = changed(nyud_shards.val, change, tmp_path / "val")
    with pytest.raises(AssertionError, match="UserError: data.train and data.val have other classes or definitions"):
        trained.train("fresh", 1, **TINY, data__val=other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(classes={}), "tasks: semseg"),
        (dict(classes=[]), "classes: Input should be"),
        (dict(tasks=["semseg", 5]), "tasks.1: Input should be"),
        (dict(config=[]), "config: Input should be"),
        (dict(config={"run": 5}), "run=5: is a section"),
        (dict(config={"run": {"seed": "x"}, "experts": 5}), "2 mistakes: run.seed='x'.*experts=5"),
        (dict(step="1"), "step: Input should be"),
        (dict(boundary_max_dist=None), "boundary_max_dist: Input should be"),
    ],
)
def test_a_state_that_somebody_edited(trained, tmp_path, change, said):
    checkpoint = Path(shutil.copytree(find_checkpoint(trained.folder("run")), tmp_path / "step-00000001"))
    state = json.loads((checkpoint / "state.json").read_text())
    del state["checksum"]
    (checkpoint / "state.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(UserError, match=said) as error:
        load_model(checkpoint)
    assert "\n" not in str(error.value)
