"""Which checkpoint counts and which is best, whatever became of the folder; nothing of others is removed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import pytest

from fgmoe_dist.checkpoints.folder import (
    drop_partial,
    find_checkpoint,
    mark_score,
    partial_folder,
    publish,
    read_state,
    rewind,
    stale_pointer,
    whole_folder,
)
from fgmoe_dist.errors import UserError
from tests.checkpoints.test_checkpoint import checkpoint_folder, state_of


def found(folder: Path) -> int | None:
    checkpoint = find_checkpoint(folder)
    return None if checkpoint is None else read_state(checkpoint).step


LATEST = {
    "as it was": ("step-00000030\n", 30),
    "gone": (None, 30),
    "empty": ("", 30),
    "garbage": ("\0\xff\n", 30),
    "of elsewhere": ("../../other/step-00000001", 30),
    "of this folder": (".", 30),
    "gone back": ("step-00000020", 20),
    "of one removed": ("step-00000025", 20),
    "of one beyond": ("step-00000099", 30),
    "of one before all": ("step-00000001", 30),
    "of one half removed": ("step-00000028", 20),
    "a branch that was left": ("none", None),
}


@pytest.mark.parametrize(("text", "step"), LATEST.values(), ids=LATEST)
def test_the_newest_whole_checkpoint_counts_and_latest_is_a_hint(tmp_path, text, step):
    checkpoints = tmp_path / "checkpoints"
    checkpoint_folder(checkpoints, 10, 20, 30)
    (checkpoints / "step-00000028").mkdir()  # without its state.json
    (checkpoints / "step-00000030-good").mkdir()  # a person's copy
    if text is not None:
        (checkpoints / "latest").write_bytes(text.encode("latin-1"))
    assert found(tmp_path) == found(checkpoints) == step
    named = int(text[5:]) if text and text.startswith("step-") else step
    assert (stale_pointer(checkpoints) is not None) == (named != step)


def test_a_pointer_is_a_name_for_a_checkpoint(tmp_path):
    first, second = checkpoint_folder(tmp_path, 10, 20)
    mark_score(first, 2.0)
    rewind(tmp_path, second)
    assert (find_checkpoint(tmp_path / "best"), find_checkpoint(tmp_path / "latest")) == (first, second)


def test_after_another_runs_checkpoint_only_what_comes_later_counts(tmp_path):
    checkpoint_folder(tmp_path / "own", 10, 20)
    (other,) = checkpoint_folder(tmp_path / "other", 3)
    rewind(tmp_path / "own", other)
    assert found(tmp_path / "own") is None
    (partial := partial_folder(tmp_path / "own", 3)).mkdir()
    publish(partial, state_of((1, 1), 3), keep=3)
    assert found(tmp_path / "own") == 3


NAN, INF = math.nan, math.inf
SCORES = {
    "all numbers": ([(1.0, 2), (3.0, 2), (2.0, 2)], 2),
    "NaN first": ([(NAN, 0), (3.0, 2), (2.0, 2)], 2),
    "NaN in the middle": ([(1.0, 2), (NAN, 0), (0.5, 2)], 1),
    "None last": ([(-7.0, 2), (None, 0)], 1),
    "infinite": ([(INF, 2), (-INF, 2), (-3.0, 2)], 3),
    "one task never has a label": ([(1.0, 1), (3.0, 1), (2.0, 1)], 2),
    "more tasks are better": ([(9.0, 1), (1.0, 2), (8.0, 1)], 2),
    "0 stands for all, here one": ([(9.0, 0), (1.0, 1)], 1),
    "none at all": ([(NAN, 0), (None, 0)], None),
}


@pytest.mark.parametrize(("scores", "best"), SCORES.values(), ids=SCORES)
def test_the_best_is_the_best_of_those_that_have_a_score(tmp_path, scores, best):
    checkpoints = checkpoint_folder(tmp_path, *range(1, len(scores) + 1))
    for order in permutations(range(len(scores))):
        (tmp_path / "best").unlink(missing_ok=True)
        for number in order:
            mark_score(checkpoints[number], *scores[number])
        pointed = (tmp_path / "best").read_text().strip() if (tmp_path / "best").exists() else None
        assert pointed == (best and f"step-{best:08d}")
    for checkpoint, (score, _) in zip(checkpoints, scores):
        text = (checkpoint / "state.json").read_text()
        assert "NaN" not in text and "Infinity" not in text
        assert read_state(checkpoint).score == (score if score is not None and math.isfinite(score) else None)


def test_a_score_that_was_written_as_nan_is_in_nobodys_way(tmp_path):
    first, second = checkpoint_folder(tmp_path, 1, 2)
    (first / "state.json").write_text(json.dumps(asdict(replace(state_of((1, 1), 1), score=NAN))))
    (tmp_path / "best").write_text(first.name)
    assert read_state(first).score is None
    mark_score(second, -4.0)
    assert (tmp_path / "best").read_text().strip() == second.name


def test_what_somebody_keeps_beside_the_checkpoints_stays(tmp_path):
    kept = [tmp_path / name for name in ("step-00000001-good", "step-by-step", ".step-notes.partial", "notes")]
    for folder in kept:
        folder.mkdir()
        (folder / "x").write_text("mine")
    for step in (1, 2, 3):
        (partial := partial_folder(tmp_path, step)).mkdir()
        publish(partial, state_of((1, 1), step), keep=1)
    partial_folder(tmp_path, 4).mkdir()
    drop_partial(tmp_path)
    assert all((folder / "x").read_text() == "mine" for folder in kept)
    assert sorted(p.name for p in tmp_path.iterdir() if p not in kept) == ["latest", "step-00000003"]


@pytest.mark.parametrize("text", ["", "[]", "3", '{"format": 1}', '{"format": 1, "step": "2"}', "\xff"])
def test_a_state_that_is_none_is_named(tmp_path, text):
    checkpoint = whole_folder(tmp_path, 1)
    checkpoint.mkdir()
    (checkpoint / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="step-00000001: .*name another checkpoint"):
        read_state(checkpoint)
