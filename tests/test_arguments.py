"""Settings on a command line: `key=value`, with `--set` or without, wherever it stands."""

from __future__ import annotations

import argparse
import importlib

import pytest

from fgmoe_dist.arguments import Parser, parse

CONFIG = ["--config", "c.yaml"]


def parsed(verb: str, *words: str) -> argparse.Namespace:
    parser = Parser("fgmoe")
    importlib.import_module(f"fgmoe_dist.verbs.{verb}").add_arguments(parser)
    return parse(parser, words)


@pytest.mark.parametrize(
    "command",
    [["train"], ["plan"], ["shards", "features", "--out", "x"], ["bench", "step"], ["bench", "step", "--ranks", "1"]],
)  # fmt: skip
@pytest.mark.parametrize(
    "words",
    [
        [*CONFIG, "a.b=1", "c=2", "a.b=3"],
        ["a.b=1", *CONFIG, "--set", "c=2", "a.b=3"],
        ["--set", "a.b=1", "c=2", "a.b=3", *CONFIG],
        ["--set=a.b=1", "c=2", *CONFIG, "--set", "a.b=3"],
    ],
)
def test_every_verb_that_takes_settings_takes_them_in_every_form(command, words):
    args = parsed(command[0], *command[1:], *words)
    assert args.set == ["a.b=1", "c=2", "a.b=3"] and args.config == "c.yaml"


def test_after_an_option_a_word_is_its_value():
    args = parsed("train", "--config", "lr=1/c.yaml", "--dry-run", "a=1", "--resume", "b=2", "c={0..3}", "d=")
    assert (args.config, args.resume, args.dry_run) == ("lr=1/c.yaml", "b=2", True)
    assert args.set == ["a=1", "c={0..3}", "d="]
    assert parsed("shards", "features", *CONFIG, "--out", "x=1", "a=1").set == ["a=1"]


@pytest.mark.parametrize("words", [["stray"], ["--stpes=3"], ["1=2"], ["=3"]])
def test_other_words_are_no_settings(words, capsys):
    with pytest.raises(SystemExit) as ending:
        parsed("train", *CONFIG, *words)
    assert ending.value.code == 2 and words[0] in capsys.readouterr().err


def test_a_verb_without_settings_takes_none(capsys):
    with pytest.raises(SystemExit):
        parsed("predict", "--checkpoint", "a", "--input", "b", "--output", "c", "d=1")
    assert "d=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("score --predictions x --workers 0", "argument --workers: '0': give a whole number, 1 or more"),
        ("score --predictions x --worker 1", "there is no --worker; did you mean --workers?"),
        ("shards build --split train --out x --samples-per-shards=3", "did you mean --samples-per-shard?"),
        ("evaluate --workers -1", "argument --workers: '-1': give a whole number, 0 or more"),
        ("evaluate --checkpoint a stray", "unrecognized arguments: stray"),
        ("bench atoms", "invalid choice: 'atoms'"),
    ],
)
def test_a_word_that_is_wrong_is_named_in_one_line(words, told, capsys):
    verb, *words = words.split()
    with pytest.raises(SystemExit) as ending:
        parsed(verb, *words)
    line, end = capsys.readouterr().err.split("\n")
    assert (ending.value.code, end) == (2, "")
    assert told in line and line.startswith("error: fgmoe") and line.endswith("--help` explains it")
