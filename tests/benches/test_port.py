"""The public port as a peer: what crosses to the other interpreter and back, with a stub in the port's place."""

import argparse
import json
import sys

import numpy as np
import pytest

from fgmoe_dist.benches import boundary as bench
from fgmoe_dist.benches.port import PortRace
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.counts import THRESHOLDS_T, BoundaryCounts
from tests.archives import SIZE_HW, save, write_nyud

EXACT = """
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

def correspond_pixels(predicted, truth, max_dist, outlier_cost):
    radius = max_dist * np.hypot(*truth.shape)
    p, t = np.argwhere(predicted), np.argwhere(truth)
    near = np.hypot(*np.moveaxis(p[:, None] - t[None], -1, 0)) <= radius
    mate = maximum_bipartite_matching(sparse.csr_array(near), "column") if near.any() else np.zeros(0)
    out = np.zeros(truth.shape)
    out[tuple(p[:len(mate)][mate >= 0].T)] = 1
    return out, None, 0.0, outlier_cost
"""
# Loses one pair in the first run on a map and three in the second, told apart by a file.
FORGETFUL = (
    EXACT.replace("def correspond_pixels", "def exact")
    + """
from pathlib import Path

def correspond_pixels(predicted, truth, max_dist, outlier_cost):
    out = exact(predicted, truth, max_dist, outlier_cost)[0]
    log = Path(__file__).with_name("calls")
    calls = len(log.read_text()) if log.exists() else 0
    log.write_text("." * (calls + 1))
    if calls:  # the first is the trial
        pairs = np.flatnonzero(out)[: 1 if calls == 1 else 3]
        out.ravel()[pairs] = 0
    return out, None, 0.0, outlier_cost
"""
)


@pytest.fixture
def interpreter(tmp_path):
    """Makes an interpreter whose pyEdgeEval is the given source; it drops the first option, -I, to find it."""

    def make(source):
        (tmp_path / "pyEdgeEval-0.0.dist-info").mkdir()
        (tmp_path / "pyEdgeEval-0.0.dist-info" / "METADATA").write_text("Name: pyEdgeEval\nVersion: 0.0\n")
        (tmp_path / "pyEdgeEval.py").write_text(source)
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\n[ "$1" = -I ] && shift\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return make


def _bench(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_port_that_matches_exactly_agrees_in_everything(interpreter, capsys):
    python = interpreter(EXACT)
    figures = _bench("--size", "60x70", "--images", 2, "--max-dist", 0.03, "--every", 25, "--port", python)
    port = json.loads(json.dumps(figures))["port"]
    assert port["versions"]["pyEdgeEval"] == "0.0" and port["thresholds_compared"] == 5
    assert port["matched_pixels_of_the_port"] == [port["matched_pixels"]] * 2 and port["matched_pixels"] > 100
    assert port["odsF_of_the_port"] == [port["odsF"]] * 2 and 0 < port["odsF"] < 100
    assert port["more_than_the_port_at_most"] == port["fewer_than_the_port_at_most"] == 0
    assert "pyEdgeEval 0.0" in capsys.readouterr().out


def test_what_the_port_misses_is_told_in_pixels_and_points(interpreter):
    """A line of 20 pixels predicted as it is: F is 1; with 17 of 20 pairs precision, recall and F are 0.85."""
    truth = np.zeros((30, 40), bool)
    truth[15, 10:30] = True
    race = PortRace(interpreter(FORGETFUL), np.array([50]))
    every = np.full(len(THRESHOLDS_T), 20)
    race.add(truth.astype(np.uint8) * 255, truth, 0.03, BoundaryCounts(every, every, 20))
    figures = race.figures(seconds_per_image=1.0)
    assert figures["matched_pixels"] == 20 and figures["matched_pixels_of_the_port"] == [19, 17]
    assert figures["more_than_the_port_at_most"] == 3 and figures["fewer_than_the_port_at_most"] == 0
    assert figures["between_two_runs_of_the_port_at_most"] == 2
    assert figures["odsF"] == 100 and figures["odsF_of_the_port"] == pytest.approx([95, 85])
    assert figures["largest_difference_in_odsF_points"] == pytest.approx(15)
    assert figures["ratio"] == figures["matching_seconds_per_image"] > 0


def test_an_interpreter_without_the_port_is_refused(interpreter, tmp_path):
    with pytest.raises(UserError, match=r"--port \S*nowhere does not run the port \(.*No such file"):
        _bench("--port", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"ImportError: built for another numpy\); name the python"):
        _bench("--port", interpreter("raise ImportError('built for another numpy')"))


def test_saved_predictions_in_place_of_drawn_maps(tmp_path):
    layout = open_layout("nyud", write_nyud(tmp_path / "archive", val=3))
    build_shards(layout, "val", tmp_path / "shards")
    (tmp_path / "saved" / "edge").mkdir(parents=True)
    for id_ in layout.ids("val"):
        save(tmp_path / "saved" / "edge" / f"{id_}.png", layout.read(id_)["boundary"] * np.uint8(255))
    shards = ["--shards", tmp_path / "shards", "--every", 50]
    figures = _bench("--predictions", tmp_path / "saved", "--images", 2, *shards)
    assert (figures["maps"], figures["sizes"], figures["images"]) == ("saved predictions", [SIZE_HW], 2)
    assert figures["largest_difference_in_matched_pixels"] == 0
    with pytest.raises(UserError, match="--predictions and --shards go together"):
        _bench("--predictions", tmp_path / "saved")
    with pytest.raises(UserError, match="missing"):
        _bench("--predictions", tmp_path, *shards)
