"""The command line: help at once, one line and exit code 2 for the user's mistakes, 1 and a traceback for ours."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import yaml

from fgmoe_dist import __version__
from fgmoe_dist.cli import VERBS, main
from fgmoe_dist.config import build_config
from tests.runs import ROOT, environment


def fgmoe(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fgmoe_dist.cli", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_help_lists_every_verb(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {verb}" in printed for verb in VERBS)
    main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ending:
        main([verb, "--help"])
    assert ending.value.code == 0
    first_line = importlib.import_module(f"fgmoe_dist.verbs.{verb}").__doc__.splitlines()[0]
    assert first_line in capsys.readouterr().out


def test_an_unknown_verb_gets_the_nearest(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["evalute"])
    assert ending.value.code == 2
    assert "did you mean `fgmoe evaluate`?" in capsys.readouterr().err


def test_a_verb_s_own_arguments_are_checked(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["train"])
    assert ending.value.code == 2 and "--config" in capsys.readouterr().err


def test_the_user_s_mistake_is_one_line_and_code_2(tmp_path):
    done = fgmoe("train", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("error: --config ") and "name an existing YAML file" in done.stderr


def test_a_mistake_met_later_is_one_line_too(tmp_path):
    done = fgmoe("train", "--config", "configs/demo.yaml", "--set", f"run.dir={tmp_path / 'run'}",
                 "--set", f"data.train={tmp_path}", "--set", "parallel.ep_size=1")  # fmt: skip
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] and "Traceback" not in done.stderr
    assert str(tmp_path) in done.stderr
    assert not (tmp_path / "run").exists()


def test_our_own_mistake_keeps_its_traceback_and_is_code_1(tmp_path):
    code = (
        "import sys, fgmoe_dist.verbs.train as verb; from fgmoe_dist.cli import main\n"
        "verb.run = lambda args: 1 / 0\n"
        "main(['train', '--config', 'x'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_the_configuration_printed_is_the_one_asked_for(tmp_path, capsys):
    main(["train", "--config", str(ROOT / "configs/demo.yaml"), "--print-config", "--set", "train.steps=7",
          "--set", f"run.dir={tmp_path / 'run'}"])  # fmt: skip
    printed = capsys.readouterr().out
    config = build_config(yaml.safe_load(printed))
    assert (config.train.steps, config.run.name) == (7, "demo")
    assert "# optimiser steps" in printed
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tries_everything_and_writes_nothing(runs):
    before = {path: path.stat().st_mtime_ns for path in runs.root.rglob("*")}
    here = set(ROOT.iterdir())
    arguments = [f"--set={override}" for override in runs.overrides("run", {"tracking__uri": ""})]
    done = fgmoe("train", "--config", str(runs.config_file), *arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    for part in ("parameters", "active per token", "experts", "all-to-all", "MiB out", "steps", "one step: loss",
                 "one image a rank evaluated"):  # fmt: skip
        assert part in done.stdout, part
    assert {path: path.stat().st_mtime_ns for path in runs.root.rglob("*")} == before
    assert set(ROOT.iterdir()) == here
