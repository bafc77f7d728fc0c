"""`fgmoe shards`: what is typed, what comes out."""

import argparse
import json

import numpy as np
import pytest

from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.errors import UserError
from fgmoe_dist.verbs import shards
from tests.archives import write_nyud


def _fgmoe_shards(*arguments):
    parser = argparse.ArgumentParser()
    shards.add_arguments(parser)
    shards.run(parser.parse_args([str(argument) for argument in arguments]))


def test_build_verify_dump(tmp_path, capsys):
    root, out = write_nyud(tmp_path / "NYUDv2"), tmp_path / "shards"
    (tmp_path / "ids.txt").write_text("0007\n0008\n")
    build = ["build", "--dataset", "nyud", "--root", root, "--split", "val", "--out", out]
    _fgmoe_shards(*build, "--images", tmp_path / "ids.txt", "--json", tmp_path / "figures.json")
    assert "2 samples in 1 shards" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["samples"], figures["shards"], figures["dataset"]) == (2, 1, "nyud")

    _fgmoe_shards("verify", out)
    assert "all 2 samples in 1 shards are whole" in capsys.readouterr().out
    _fgmoe_shards("dump", "--shards", out, "--id", "0008", "--out", tmp_path / "dump")
    truth = open_layout("nyud", root).read("0008")
    np.testing.assert_array_equal(np.load(tmp_path / "dump" / "0008.depth.npy"), truth["depth"])

    (out / "nyud-val-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="1 faults, listed above"):
        _fgmoe_shards("verify", out, "--json", tmp_path / "figures.json")
    assert "nyud-val-000000.tar" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "figures.json").read_text())["faults"]) == 1


@pytest.mark.parametrize("line", ["", "build", "build --dataset coco", "verify", "dump --shards x"])
def test_a_wrong_line_is_refused_by_the_parser(line):
    with pytest.raises(SystemExit):
        _fgmoe_shards(*line.split())
