"""Checkpoints that verify themselves: checksums, what training does where one is damaged, and `fgmoe checkpoint`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgmoe_dist.checkpoints.folder import (
    damages,
    find_checkpoint,
    mark_score,
    pointers_to,
    read_state,
    remove,
    rewind,
    whole_folder,
)
from fgmoe_dist.checkpoints.integrity import damaged_files, is_as_sealed, sealed
from fgmoe_dist.checkpoints.space import check_room, check_room_for_run
from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.training.resume import choose_checkpoint
from tests.checkpoints.test_checkpoint import checkpoint_folder
from tests.runs import ROOT, Runs, environment, fgmoe, losses

TINY = dict(
    tasks="[semseg, depth]", decoder__blocks=1, train__checkpoint_every=1, train__steps=3, train__keep_checkpoints=3
)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def trained(nyud_shards, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"), nyud_shards.train, nyud_shards.val)
    runs.train("run", 2, parallel__ep_size=2, **TINY)
    return runs


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy to damage: three checkpoints, the third being the latest and the best."""
    return Path(shutil.copytree(trained.folder("run"), tmp_path / "run"))


def steps(run: Path) -> list[Path]:
    return [whole_folder(run / "checkpoints", step) for step in (1, 2, 3)]


def test_the_state_tells_the_checksum_of_every_other_file(run):
    for checkpoint in steps(run):
        by_hand = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in checkpoint.iterdir() if path.name != "state.json"
        }  # fmt: skip
        assert read_state(checkpoint).files == by_hand and len(by_hand) == 3  # the decoder, and two ranks' experts
        assert damages(checkpoint) == []


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
@pytest.mark.parametrize("name", ["decoder.safetensors", "experts-001-of-002.safetensors", "state.json"])
def test_a_flipped_bit_anywhere_is_seen(run, name, share):
    path = steps(run)[2] / name
    last = path.stat().st_size - 1 if name != "state.json" else path.read_text().rindex('"')
    flip(path, round(share * last))
    (found,) = damages(steps(run)[2])
    assert name in found and str(steps(run)[2]) in found


def test_files_that_are_gone_or_no_files_are_told(tmp_path):
    (tmp_path / "folder").mkdir()
    assert damaged_files(tmp_path, {"gone": "0", "folder": "0"}) == [
        "folder: cannot be read (Is a directory)", "gone: is missing",
    ]  # fmt: skip


def test_a_seal_is_of_the_values_and_not_of_their_order():
    values = sealed({"a": 1.1, "b": [None, {"ä": True}]})
    assert is_as_sealed(json.loads(json.dumps(dict(reversed(values.items())))))
    assert not is_as_sealed({**values, "a": 1.2}) and not is_as_sealed({**values, "c": None})
    assert is_as_sealed({"a": 1})  # from before there were any


def chosen(run: Path, asked: object, trained: Runs) -> Path | None:
    return choose_checkpoint(RunFolder(run), str(asked), trained.config("run", parallel__ep_size=2, **TINY))


def test_a_damaged_latest_is_passed_over_for_the_one_before_and_it_is_said(run, trained, capsys):
    first, second, third = steps(run)
    flip(third / "decoder.safetensors", -1)
    assert chosen(run, "auto", trained) == second
    assert f"{third}: decoder.safetensors: is damaged" in capsys.readouterr().out
    flip(second / "state.json", 100)
    assert chosen(run, run, trained) == first  # a run folder may be named too
    told = capsys.readouterr().out
    assert str(second) in told and "going on from the one before, step-00000001" in told and told.count("\n") == 1
    (first / "experts-000-of-002.safetensors").unlink()
    with pytest.raises(UserError, match="no sound checkpoint is left"):
        chosen(run, "auto", trained)


def test_one_that_was_named_itself_is_refused(run, trained):
    flip(steps(run)[1] / "decoder.safetensors", -1)
    for asked in (steps(run)[1], steps(run)[1].relative_to(run.parent)):
        with pytest.raises(UserError, match="is damaged .*; name another checkpoint"):
            chosen(run, run.parent / asked, trained)
    assert chosen(run, run, trained) == steps(run)[2]


def test_a_run_that_has_gone_on_needs_no_more_what_it_began_with(run, trained, tmp_path):
    origin = Path(shutil.copytree(steps(run)[0], tmp_path / "origin/checkpoints/step-00000001"))
    flip(origin / "decoder.safetensors", -1)
    assert chosen(run, origin, trained) == steps(run)[2]


@pytest.mark.slow
def test_a_run_goes_on_from_the_one_before_as_if_it_had_ended_there(runs):
    lines = runs.train("run", 2, **TINY)
    flip(steps(runs.folder("run"))[2] / "decoder.safetensors", -9)
    assert losses(runs.train("run", 2, **TINY)) == losses(lines), "bit for bit"
    assert damages(steps(runs.folder("run"))[2]) == []  # written anew


def test_a_damaged_best_gives_way_and_ends_no_run(tmp_path):
    first, second = checkpoint_folder(tmp_path, 10, 20)
    mark_score(first, 5.0)
    (first / "state.json").write_text("{")
    mark_score(second, 1.0)
    assert pointers_to(second) == ["best"]


def test_what_named_a_removed_one_names_the_one_before(tmp_path):
    first, second, third = checkpoint_folder(tmp_path, 10, 20, 30)
    rewind(tmp_path, third)
    mark_score(third, 5.0)
    assert pointers_to(third) == ["latest", "best"]
    remove(third)
    assert find_checkpoint(tmp_path) == second and pointers_to(second) == ["latest"]
    assert not (tmp_path / "best").exists()
    remove(first)
    remove(second)
    assert list(tmp_path.iterdir()) == []


def refused(*words: object) -> str:
    """The one line that `fgmoe checkpoint` ends with, code 2; in a process of its own, which an error ends."""
    done = subprocess.run(
        [sys.executable, "-m", "fgmoe_dist.cli", "checkpoint", *map(str, words)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_verb_lists_verifies_and_removes(run, tmp_path):
    first, second, third = steps(run)
    flip(second / "decoder.safetensors", -1)
    fgmoe("checkpoint", "verify", third)
    listed = fgmoe("checkpoint", "list", run, "--json", tmp_path / "list.json")
    assert listed.count("as written") == 2 and listed.count("damaged") == 1 and "latest" in listed
    told = json.loads((tmp_path / "list.json").read_text())
    assert [(facts["step"], facts["files"]) for facts in told] == [(1, "as written"), (2, "damaged"), (3, "as written")]
    assert told[2]["bytes"] == sum(path.stat().st_size for path in third.iterdir())
    assert f"{second}: decoder.safetensors: is damaged" in refused("verify", run)
    assert "is the run's latest" in refused("rm", second, third) and second.exists(), "all or none"
    for folder in (run, run / "checkpoints", run / "checkpoints/latest"):
        assert "is no checkpoint" in refused("rm", folder)
    assert "no checkpoint there" in refused("list", tmp_path)
    fgmoe("checkpoint", "rm", second, second)
    fgmoe("checkpoint", "rm", "--force", third)
    assert find_checkpoint(run) == first and not second.exists()


def test_room_is_looked_for_before_the_work(tmp_path, monkeypatch):
    class Usage:
        free = 100 * 2**20

    monkeypatch.setattr("fgmoe_dist.checkpoints.space.shutil.disk_usage", lambda folder: Usage)
    folder = tmp_path / "runs/new/checkpoints"
    millions = 2**20
    check_room_for_run(folder, 2 * millions, keep=2)  # 24 MiB each: two, the best, and the one being written
    with pytest.raises(UserError, match=r"4 checkpoints of 36.00 MiB will need 144.00 MiB, and 100.00 MiB are free"):
        check_room_for_run(folder, 3 * millions, keep=2)
    checkpoint_folder(folder, 1, 2)
    check_room_for_run(folder, 3 * millions, keep=2)  # two of them are there
    check_room(folder, 100 * millions)
    with pytest.raises(OSError, match="it needs 100.00 MiB, and 100.00 MiB are free"):
        check_room(folder, 100 * millions + 1)


def test_no_run_starts_without_room(runs):
    from tests.ranks import run_ranks

    with pytest.raises(AssertionError, match=r"run.dir=.*checkpoints of .* will need .* are free; make room"):
        run_ranks(2, train_on_a_full_disk, runs.config_file, runs.overrides("run", TINY))


def train_on_a_full_disk(config_file: Path, overrides: list[str]) -> None:
    from fgmoe_dist.checkpoints import space
    from tests.runs import train_on_rank

    space.free_bytes = lambda folder: 1000
    train_on_rank(config_file, overrides, "auto")
