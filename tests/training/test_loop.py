"""Where a run goes on from, and what it leaves of itself: it stands alone, knows its best, names its settings."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from fgmoe_dist.checkpoints.folder import find_checkpoint, read_state, rewind
from fgmoe_dist.config import build_config
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.tasks import DataSetFacts, create_tasks
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.training.resume import choose_checkpoint
from tests.checkpoints.test_checkpoint import state_of
from tests.ranks import run_ranks
from tests.runs import Runs, train_on_rank

FEW = dict(tasks="[semseg, depth]", decoder__blocks=1)


def configuration(ep_size: int = 1, **experts):
    return build_config({"experts": experts, "parallel": {"ep_size": ep_size}})


def checkpoint_of(run: Path, step: int, config=None) -> Path:
    """What tells a checkpoint, made the latest of its run."""
    checkpoint = run / f"checkpoints/step-{step:08d}"
    checkpoint.mkdir(parents=True)
    state = replace(state_of((1, 1), step), config=(config or configuration()).model_dump(mode="json"))
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)))
    rewind(checkpoint.parent, checkpoint)
    return checkpoint


def test_a_path_is_where_a_run_starts_and_its_own_checkpoints_are_where_it_goes_on(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    start, choose = checkpoint_of(a, 2), lambda path: choose_checkpoint(RunFolder(b), str(path), configuration())
    assert choose(a) == start
    early = checkpoint_of(b, 1)
    assert choose(a) == start and choose("auto") == early and not capsys.readouterr().out
    later = checkpoint_of(b, 2)
    assert choose(a) == later
    assert re.fullmatch(r"--resume \S+/a: \S+/b has gone on to step-00000002 already.*\n", capsys.readouterr().out)
    assert choose(early) == early  # one of its own: to go back is meant
    with pytest.raises(UserError, match="--resume .*nowhere: no checkpoint there"):
        choose(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--resume never would overwrite"):
        choose("never")


def test_only_a_folder_without_any_checkpoint_is_started_afresh(tmp_path, capsys):
    def choose(how="auto"):
        return choose_checkpoint(RunFolder(tmp_path), how, configuration())

    assert choose() is None and choose("never") is None
    first, second = checkpoint_of(tmp_path, 1), checkpoint_of(tmp_path, 2)
    shutil.rmtree(second)
    assert choose() == first
    assert re.fullmatch(
        r"\S+/latest names step-00000002, which is not there; step-00000001 is .*\n", capsys.readouterr().out
    )
    (first / "state.json").unlink()
    for how in ("auto", "never"):
        with pytest.raises(UserError, match="yet holds step-00000001, which is not whole.*name another run.dir"):
            choose(how)
    other = checkpoint_of(tmp_path / "other", 5)
    assert choose(other) == other


LIMIT = dict(max_ranks_per_token=2)


@pytest.mark.parametrize(
    ("was", "now", "groups"),
    [
        (configuration(4, **LIMIT), configuration(2, **LIMIT), 4),
        (configuration(4, **LIMIT).pinned(), configuration(2, **LIMIT), 4),
        (configuration(1, groups=4, device_balance_weight=0.1), configuration(2, device_balance_weight=0.1), 4),
        (configuration(4, **LIMIT), configuration(4, **LIMIT), None),
        (configuration(4, **LIMIT), configuration(2, groups=4, **LIMIT), None),
        (configuration(4), configuration(2), None),
        (configuration(4), configuration(2, **LIMIT), None),
    ],
    ids=["unpinned", "pinned", "written", "alike", "set", "without", "new"],
)
def test_groups_that_would_change_in_silence_are_refused(tmp_path, was, now, groups):
    checkpoint = checkpoint_of(tmp_path, 2, was)
    if groups is None:
        assert choose_checkpoint(RunFolder(tmp_path), "auto", now) == checkpoint
        return
    with pytest.raises(
        UserError, match=rf"in {groups} groups, this run's would be in 2, .* set experts.groups={groups}"
    ):
        choose_checkpoint(RunFolder(tmp_path), "auto", now)


def start_a(runs: Runs) -> Path:
    runs.train("a", 1, train__steps=1, **FEW)
    return runs.folder("a")


@pytest.mark.slow
def test_a_run_that_starts_at_its_end_is_whole(runs):
    a = start_a(runs)
    runs.train("b", 1, resume=str(a), train__steps=1, **FEW)
    checkpoints = runs.folder("b") / "checkpoints"
    own = find_checkpoint(checkpoints)
    scored = read_state(own)
    assert scored.step == 1 and scored.score == read_state(find_checkpoint(a)).score is not None
    for name in ("decoder.safetensors", "experts-000-of-001.safetensors"):
        assert (own / name).read_bytes() == (find_checkpoint(a) / name).read_bytes()

    # As if it had died between the evaluation and its mark.
    (checkpoints / "best").unlink()
    (own / "state.json").write_text(json.dumps(asdict(replace(scored, score=None))))
    runs.train("b", 1, resume=str(a), train__steps=1, **FEW)
    assert read_state(own) == scored and (checkpoints / "best").read_text().strip() == own.name


@pytest.mark.slow
def test_the_same_command_with_a_path_goes_on(runs):
    a = start_a(runs)
    for steps in (3, 5):
        lines = runs.train("b", 1, resume=str(a), train__steps=steps, train__poly_power=0, **FEW)
        assert [line["step"] for line in lines] == list(range(2, steps + 1))

    # Of a branch that is left nothing is told any more.
    runs.train("a", 1, train__steps=6, **FEW)
    lines = runs.train("b", 1, resume=str(a), train__steps=7, **FEW)
    assert [line["step"] for line in lines] == [7] and list(RunFolder(runs.folder("b")).evaluations()) == [7]
    assert read_state(find_checkpoint(runs.folder("b"))).step == 7
    assert (runs.folder("b") / "checkpoints/best").read_text().strip() == "step-00000007"


@pytest.mark.slow
def test_what_a_run_leaves_says_the_groups_it_used(runs):
    limit = dict(FEW, train__steps=1, experts__max_ranks_per_token=2)
    runs.train("run", 2, parallel__ep_size=2, **limit)
    folder = runs.folder("run")
    assert yaml.safe_load((folder / "config.yaml").read_text())["experts"]["groups"] == 2
    assert read_state(find_checkpoint(folder)).config["experts"]["groups"] == 2
    with pytest.raises(AssertionError, match="in 2 groups, this run's would be in 1, .* set experts.groups=2"):
        runs.train("run", 1, **limit)
    assert not runs.train("other", 1, resume=str(folder), experts__groups=2, **limit)


def train_and_tell(config_file: Path, overrides: list[str]) -> str:
    """What a run prints; the ranks' own output goes wherever their server was started."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        train_on_rank(config_file, overrides, "auto")
    return told.getvalue()


@pytest.mark.slow
def test_a_run_never_begins_again_in_silence(runs):
    def train(steps: int) -> str:
        changes = dict(FEW, train__steps=steps, train__checkpoint_every=1, train__poly_power=0)
        return run_ranks(1, train_and_tell, runs.config_file, runs.overrides("run", changes))[0]

    train(3)
    before = runs.metrics("run")
    shutil.rmtree(runs.folder("run") / "checkpoints/step-00000003")
    assert "latest names step-00000003" in train(3)
    lines = runs.metrics("run")
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[:2] == before[:2]
    assert lines[2]["loss"] == pytest.approx(before[2]["loss"], rel=1e-6)

    assert "stands at step 3 already, beyond train.steps=2" in train(2)
    assert [line["step"] for line in runs.metrics("run")] == [1, 2, 3]

    shutil.rmtree(runs.folder("run") / "checkpoints")  # of all that was, records alone
    assert "starts over, in place of what it logged to step 3" in train(1) and len(runs.metrics("run")) == 1


def test_a_run_touches_no_folder_of_somebody_elses(runs):
    folder = runs.folder("theirs")
    for name in ("config.yaml", "eval/2023.json", "pictures/2024/x.txt", "checkpoints/step-1.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    for resume in ("auto", "never"):
        with pytest.raises(AssertionError, match="theirs: holds what is not a run of ours"):
            runs.train("theirs", 1, resume=resume, train__steps=1, **FEW)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


@pytest.mark.parametrize("world", [1, 2])
def test_the_last_evaluation_leaves_what_each_image_adds(runs, world):
    """Pooled over all images that is the evaluation itself, and every image of every rank is there once."""
    name = f"sums-{world}"
    runs.train(name, world, **FEW, train__steps=1)
    folder = RunFolder(runs.folder(name))
    sums, about = ImageSums.load(folder.image_sums_file(1))
    shards = ShardSet.open(runs.config(name).data.val)
    assert sums.ids == [id_ for shard in shards.shards for id_ in shard.ids]
    for task in create_tasks(sums.tasks, DataSetFacts(**about)):
        meter = task.meter()
        meter.merge(sums.matrix(task.name).toarray().sum(0))
        assert meter.compute() == pytest.approx(folder.evaluation(1)[task.name], rel=1e-12, nan_ok=True)
    assert sums.tasks == ["semseg", "depth"]
