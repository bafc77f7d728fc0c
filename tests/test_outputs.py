"""Where results may go: what is looked at before the work, and whose folder is whose."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shutil
from pathlib import Path

import pytest

from fgmoe_dist.arguments import refuse_empty
from fgmoe_dist.cli import VERBS
from fgmoe_dist.errors import UserError
from fgmoe_dist.outputs import DUMPED, MARKER, REPORT, RESULTS, ROOMS, RUN, SHARDS, check_output, claim, is_ours

KINDS = (RUN, SHARDS, RESULTS, DUMPED, REPORT, ROOMS)
PACKAGE = Path(__file__).resolve().parents[1] / "fgmoe_dist"


def lay(folder: Path, *files: str) -> Path:
    """A person's own files, each with a word in it."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


FOREIGN = {
    "configuration": ("config.yaml", "eval/2023.json", "pictures/2024/x.txt"),
    "labels": ("semseg/a.png", "depth/a.npy"),
    "comic": ("panels/1.png", "pages/2.png"),
    "website": ("index.html", "style.css"),
    "json": ("index.json", "plan.json", "about.json"),
    "hidden": (".env",),
    "deep": ("a/b/c",),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_somebody_elses_is_refused_and_left_as_it_is(tmp_path, kind, files):
    folder = lay(tmp_path / "theirs", *files)
    before = contents(folder)
    for act in (check_output, claim):
        with pytest.raises(UserError, match=f"theirs:? holds what is not {kind.what} of ours .*name a new or empty"):
            act(folder, "--out", kind)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"tags": []}', '{"status": "done"}', '{"format": 1}', "\\xff", '{"tags": {"a": 1}}']
)
@pytest.mark.parametrize("name", ["about.json", "index.json", "plan.json"])
def test_a_file_that_only_has_the_name_of_ours_says_nothing(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert not any(is_ours(tmp_path, kind) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_an_empty_or_new_folder_becomes_ours_and_stays_it(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new/er", tmp_path / "empty"):
        check_output(folder, "--out", kind)
        assert not list(tmp_path.rglob("*/*"))
        claim(folder, "--out", kind)
        lay(folder, "config.yaml", "x/y")
        claim(folder, "--out", kind)
        assert sorted(contents(folder)) == [MARKER, "config.yaml", "x", "x/y"]
        for other in KINDS:
            assert is_ours(folder, other) == (other is kind)
        shutil.rmtree(folder.parent if folder.name == "er" else folder)


def test_what_there_was_before_there_were_markers_is_known(tmp_path):
    run, old = tmp_path / "run", tmp_path / "old"
    lay(run, "config.yaml", "metrics.jsonl")
    (run / "about.json").write_text('{"status": "KILLED", "tags": {}}')
    lay(old, "config.yaml", "checkpoints/step-00000001/decoder.safetensors")
    (old / "checkpoints/step-00000001/state.json").write_text('{"step": 1, "encoder_checksum": "a"}')
    shards, plan = tmp_path / "shards", tmp_path / "plan"
    lay(shards, "nyud-train-000000.tar", "notes.txt"), lay(plan, "nyud-train-000000.tar")
    (shards / "index.json").write_text('{"format": 1, "dataset": "nyud", "shards": []}')
    (plan / "plan.json").write_text('{"fingerprint": "a"}')
    predicted = lay(tmp_path / "predicted", "semseg/a.png", "depth/a.npy", "panels/a.png")
    dumped = lay(tmp_path / "dumped", "a.image.png", "a.depth.npy", "b.image.png")
    (report := tmp_path / "report").mkdir()
    (report / "index.html").write_text("<footer>Scored by fgmoe_dist 1.0</footer>")
    known = {run: RUN, old: RUN, shards: SHARDS, plan: SHARDS, predicted: RESULTS, dumped: DUMPED, report: REPORT}
    for folder, kind in known.items():
        assert [other.what for other in KINDS if is_ours(folder, other)] == [kind.what], folder


def test_what_is_nobodys_work_is_in_nobodys_way(tmp_path):
    lay(tmp_path, "stop", ".gitkeep", "lost+found/x", ".config.yaml.77.part")
    assert all(is_ours(tmp_path, kind) for kind in KINDS)


BAD_FILES = {
    "is a folder; name another file": lambda d: d,
    "lies in no folder: make .*none, or name another": lambda d: d / "none/new.json",
    "is write-protected": lambda d: _protected(d / "kept.json"),
    "cannot be written": lambda d: Path("/proc/x"),
    "cannot be written .File name too long": lambda d: d / ("x" * 256),
    "lies in no folder": lambda d: lay(d, "file") / "file/x.json",
}


def _protected(path: Path) -> Path:
    path.write_text("kept")
    path.chmod(0o444)
    return path


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_file_that_cannot_be_is_told_before_the_work(tmp_path, fault):
    path = BAD_FILES[fault](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"^--json .*{fault}") as error:
        check_output(path, "--json")
    assert "\n" not in str(error.value) and contents(tmp_path) == before


BAD_FOLDERS = {
    "is a file; name a folder": lambda d: lay(d, "file") / "file",
    "cannot be written .Not a directory": lambda d: lay(d, "file") / "file/a/b",
    "cannot be written": lambda d: Path("/proc/x/y"),
    "is a link to nothing": lambda d: _link(d / "link", d / "nowhere"),
    "cannot be written .Too many levels": lambda d: _link(d / "link", d / "link") / "a",
    "cannot be written .File name too long": lambda d: d / ("x" * 256) / "a",
    "cannot be written .embedded null": lambda d: Path(f"{d}/a\0b"),
}


def _link(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("fault", BAD_FOLDERS)
@pytest.mark.parametrize("kind", (RUN, SHARDS), ids=lambda kind: kind.what)
def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path, fault, kind):
    path = BAD_FOLDERS[fault](tmp_path)
    with pytest.raises(UserError, match=rf"^run.dir=.*: {fault}"):
        check_output(path, "run.dir", kind)


def test_a_good_place_is_left_as_it_was(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/old.json").write_text("old")
    before = contents(tmp_path), (tmp_path / "there").stat().st_mtime_ns
    for path in (tmp_path / "new.json", tmp_path / "there/old.json", Path(os.devnull), Path("/dev/full")):
        check_output(path, "--json")
    check_output(tmp_path / "a/b/c", "--out", RUN)
    check_output(tmp_path / "a/b.db", "tracking.uri", make_parents=True)
    _link(tmp_path / "link", tmp_path / "there/old.json")
    check_output(tmp_path / "link", "--json")
    (tmp_path / "link").unlink()
    assert (contents(tmp_path), (tmp_path / "there").stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "words", [["--out", ""], ["--out="], ["a", ""], ["--json", " "], ["--out", "a", "--checkpoint="]]
)
def test_an_option_without_a_value_is_refused(words):
    with pytest.raises(UserError, match="is empty"):
        refuse_empty(words)


def test_what_may_be_empty_is_not(tmp_path):
    refuse_empty(["--uri", "", "--experiment=", "--set", "tracking.uri=", "--set=tracking.uri=", "runs"])


OUTPUT_WORDS = ("output", "out", "json", "markdown", "details", "report", "predictions", "pictures")


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"train", "ui"}))
def test_every_verbs_outputs_are_looked_at_before_the_work(verb, tmp_path, monkeypatch):
    """Each option that names one is refused for /proc/x, whatever else is wrong with the command."""
    module = importlib.import_module(f"fgmoe_dist.verbs.{verb}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    tried = 0
    for words, actions in _commands(parser):
        for action in actions:
            if action.dest not in OUTPUT_WORDS or (verb, action.dest) in (("score", "predictions"),):
                continue
            option = action.option_strings[0]
            if verb == "bench" and option == "--predictions":
                continue  # read there
            needed = [w for a in actions if a.required and a is not action for w in _given(a)]
            args = parser.parse_args([*words, *needed, option, "/proc/x"])
            with pytest.raises(UserError, match=f"^{option} /proc/x cannot be written"):
                module.run(args)
            tried += 1
    assert tried


def _commands(parser: argparse.ArgumentParser):
    """Words of each sub-command and the options it takes."""
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not subs:
        yield [], parser._actions
    for name, sub in subs[0].choices.items() if subs else ():
        yield [name], sub._actions


def _given(action: argparse.Action) -> list[str]:
    value = next(iter(action.choices)) if action.choices else {"train": "1", "val": "1"}.get(action.dest, "nowhere")
    return [action.option_strings[0], value] if action.option_strings else [value]


def test_json_is_written_by_one_function():
    """`files.to_json`, which knows no NaN; a file that other interpreters run has its own, as strict."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                assert any(k.arg == "allow_nan" and k.value.value is False for k in node.keywords), path
                found.add(path.name)
    assert found == {"files.py", "port_worker.py"}
