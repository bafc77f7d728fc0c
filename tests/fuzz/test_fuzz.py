"""The harness itself: what it takes for a fault, and that a case can be made again."""

import os
import random
import signal

import numpy as np
import pytest

from fgmoe_dist.errors import UserError
from tests.fuzz import harness
from tests.fuzz.harness import Target, Workshop, Wrong
from tests.fuzz.mutate import spoil_bytes, spoil_tree
from tests.fuzz.targets import TARGETS


def _target(use):
    def prepare(folder):
        (folder / "a.txt").write_text("good")

    def spoil(folder, rng):
        (folder / "a.txt").write_text(str(rng.random()))
        return "another text"

    return Target("trial", prepare, spoil, use)


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("use", "end"),
    [
        (lambda folder: None, "right"),
        (lambda folder: _raise(UserError("one line: do this")), "refused"),
        (lambda folder: _raise(SystemExit(2)), "refused"),
        (lambda folder: _raise(UserError("two\nlines")), "many lines"),
        (lambda folder: _raise(UserError("")), "many lines"),
        (lambda folder: _raise(SystemExit(1)), "SystemExit"),
        (lambda folder: {}["x"], "KeyError"),
        (lambda folder: _raise(MemoryError()), "MemoryError"),
        (lambda folder: _raise(Wrong("seven")), "Wrong"),
        (lambda folder: os.kill(os.getpid(), signal.SIGALRM), "Hangs"),
    ],
)
def test_the_ends_of_a_case(use, end, tmp_path):
    outcome, work = Workshop(tmp_path).run(_target(use), 7)
    assert outcome.end == end and bool(outcome.fault) == (end not in ("right", "refused"))
    assert outcome.command == "python -m tests.fuzz --target trial --seed 7 --cases 1"
    again, _ = Workshop(tmp_path).run(_target(use), 7)
    assert (again.change, again.end) == (outcome.change, outcome.end) and work.name == "case"


def test_what_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "SLOWEST", 1)
    assert Workshop(tmp_path).run(_target(lambda folder: signal.pause()), 1)[0].end == "Hangs"


def test_the_same_seed_makes_the_same_case():
    tree = {"a": [1, 2.5, {"b": "x"}], "c": None}
    data = bytes(range(200))
    first = [(repr(spoil_tree(tree, random.Random(n))), spoil_bytes(data, random.Random(n))) for n in range(200)]
    assert first == [
        (repr(spoil_tree(tree, random.Random(n))), spoil_bytes(data, random.Random(n))) for n in range(200)
    ]
    assert tree == {"a": [1, 2.5, {"b": "x"}], "c": None} and sum(spoilt != data for _, (spoilt, _) in first) > 150


# The others take longer to make good input for; `make fuzz` runs them all.
@pytest.mark.parametrize("name", ["config", "nyud", "described_nyuv2_13", "predictions", "photographs", "environment"])
def test_good_input_is_right(name, tmp_path):
    target = next(target for target in TARGETS if target.name == name)
    unspoilt = Target(name, target.prepare, lambda folder, rng: "nothing", target.use)
    outcome, _ = Workshop(tmp_path).run(unspoilt, 0)
    assert outcome.end == "right", outcome.fault


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_good_input_of_every_target_is_right(target, tmp_path):
    unspoilt = Target(target.name, target.prepare, lambda folder, rng: "nothing", target.use)
    outcome, _ = Workshop(tmp_path).run(unspoilt, 0)
    assert outcome.end == "right", outcome.fault


def test_a_changed_label_that_verify_calls_whole_would_be_found(tmp_path):
    target = next(target for target in TARGETS if target.name == "shards")

    def spoil(folder, rng):
        with np.load(folder / "truth.npz") as truth:
            changed = {key: truth[key].copy() for key in truth.files}
        changed["0001.semseg"][0, 0] += 1
        np.savez(folder / "truth.npz", **changed)
        return "another truth"

    outcome, _ = Workshop(tmp_path).run(Target("shards", target.prepare, spoil, target.use), 0)
    assert outcome.end == "Wrong" and "0001.semseg has changed and verify says whole" in outcome.fault
