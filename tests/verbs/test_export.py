from __future__ import annotations

import argparse
import json
import re
import resource

import pytest

from fgmoe_dist.checkpoints import checkpoint
from fgmoe_dist.errors import UserError
from fgmoe_dist.export import verify
from fgmoe_dist.export.load import load_exported
from fgmoe_dist.verbs import export
from tests.export.models import tiny_model
from tests.runs import Runs


def call(*words) -> None:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    export.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def tiny(monkeypatch):
    model, state = tiny_model()
    monkeypatch.setattr(checkpoint, "load_model", lambda path, kernel: (model, None, state))
    return "--checkpoint", "run"


def test_it_writes_checks_and_reports(tiny, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    call(*tiny, "--format", "safetensors", "--output", output, "--json", tmp_path / "export.json")
    report = json.loads((tmp_path / "export.json").read_text())
    assert report["step"] == 3 and report["relative_difference"] < 1e-6
    assert report["tasks"].keys() == {"semseg", "depth"}
    assert load_exported(output)[2].step == 3
    said = capsys.readouterr().out
    assert "semseg: greatest difference" in said and str(output) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "model.safetensors"]


def test_a_file_that_differs_is_not_kept(tiny, tmp_path, monkeypatch, capsys):
    found = {"depth": verify.Difference(greatest=0.5, magnitude=2.0)}
    monkeypatch.setattr(verify, "differences", lambda *_: found)
    with pytest.raises(SystemExit) as ending:
        call(*tiny, "--format", "safetensors", "--output", tmp_path / "model", "--json", tmp_path / "export.json")
    assert ending.value.code == 1 and "error: the exported model differs by 2.50e-01" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_mistakes_are_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match="--output .* name another file"):
        call(*tiny, "--format", "pt2", "--output", tmp_path)
    with pytest.raises(UserError, match="--output .* name another file"):
        call(*tiny, "--format", "pt2", "--output", tmp_path / "nowhere/model")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "gguf"), r"invalid choice: 'gguf' \(choose from .*safetensors.*pt2.*onnx"),
        (("--format", "pt2", "--tolerance", "nan"), "nan is no share"),
        (("--format", "pt2", "--tolerance", "-1"), "-1 is no share"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as ending:
        call("--checkpoint", tmp_path, "--output", tmp_path / "model", *words)
    assert ending.value.code == 2 and re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("format", ["safetensors", "pt2"])
def test_a_full_disk_is_said_in_one_line(tiny, tmp_path, format):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError) as error:
            call(*tiny, "--format", format, "--output", tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).startswith(f"--output {tmp_path / 'model'}: cannot be written") and "\n" not in str(
        error.value
    )
    assert not list(tmp_path.iterdir())


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(UserError, match="no checkpoint there"):
        call("--checkpoint", tmp_path, "--format", "pt2", "--output", tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "pt2"])
def test_a_run_on_two_ranks_in_bf16_becomes_one_file(runs: Runs, tmp_path, format):
    few = dict(tasks="[semseg, depth]", experts__count=2, experts__split=1, experts__top_k=2, decoder__blocks=1)
    runs.train("run", 2, train__steps=1, train__precision="bf16", parallel__ep_size=2, **few)
    call("--checkpoint", runs.folder("run"), "--format", format, "--output", tmp_path / "model")
    assert (tmp_path / "model").exists()
