"""Settings on a command line: `key=value`, with `--set` or without, wherever it stands."""

from __future__ import annotations

import argparse
import importlib

import pytest

from fgmoe_dist.arguments import parse

CONFIG = ["--config", "c.yaml"]


def parsed(verb: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
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
