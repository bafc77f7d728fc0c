"""The original's matcher as a peer: pyEdgeEval, a compiled public port of the BSDS / SEISM toolbox, on the same maps.

It runs under an interpreter of its own, in an environment that has it: it is compiled on installation and its matcher
is under the GPL, so nothing of it is imported, linked or shipped here. `port_worker` is what that interpreter runs.

The matcher draws its outlier links from a stream seeded by the clock, so it is run twice on every image: what it
differs from itself is the scale for what it differs from us.

Shapes: H x W pixels, T = the thresholds compared, N images, R = 2 runs of the port.
"""

from __future__ import annotations

import io
import json
import subprocess
from typing import Any

import numpy as np

from fgmoe_dist.benches import port_worker
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.counts import THRESHOLDS_T, BoundaryCounts, thinned_levels
from fgmoe_dist.metrics.boundary.curve import f_measure, precision_recall
from fgmoe_dist.metrics.boundary.nms import suppress_non_maxima

_RUNS = 2


class PortRace:
    """The port beside our own counts, image after image.

    Args:
        python: an interpreter that can import pyEdgeEval; tried at once.
        some_T: which of the 101 thresholds to compare.

    Raises:
        UserError: there is no such interpreter, or it cannot run the port.
    """

    def __init__(self, python: str, some_T: np.ndarray):
        self.python, self.some_T = python, some_T
        line_HW = np.eye(8, dtype=bool)
        self.versions = self._port(line_HW[None], line_HW, 0.1)["versions"]
        self._matched_NRT, self._counts_N, self._seconds_N = [], [], []

    def add(self, probability_HW: np.ndarray, truth_HW: np.ndarray, max_dist: float, counts: BoundaryCounts) -> None:
        """Let the port match the maps that `counts` was counted from."""
        maps_THW = np.zeros((len(THRESHOLDS_T), *truth_HW.shape), bool)
        for same_T, map_HW in thinned_levels(suppress_non_maxima(probability_HW)):
            maps_THW[same_T] = map_HW
        runs = [self._port(maps_THW[self.some_T], truth_HW, max_dist) for _ in range(_RUNS)]
        self._matched_NRT.append([run["matched"] for run in runs])
        self._counts_N.append(counts)
        share = len(self.some_T) / len(THRESHOLDS_T)
        self._seconds_N.append(sum(run["seconds"] for run in runs) / _RUNS / share)

    def figures(self, seconds_per_image: float) -> dict[str, Any]:
        """What the port counted and took beside ours; `seconds_per_image` is ours for the whole of an image.

        The port's seconds are its matching alone, for 101 thresholds: suppression and thinning come on top.
        """
        ours_NT = np.array([counts.matched_T[self.some_T] for counts in self._counts_N])
        port_NRT = np.array(self._matched_NRT)
        difference_NRT = ours_NT[:, None] - port_NRT
        ours_f, port_f_R = self._ods(ours_NT), [self._ods(port_NRT[:, run]) for run in range(_RUNS)]
        seconds = float(np.mean(self._seconds_N))
        return {
            "versions": self.versions,
            "thresholds_compared": len(self.some_T),
            "matching_seconds_per_image": seconds,
            "matching_seconds_of_each_image": self._seconds_N,
            "ratio": seconds / seconds_per_image,
            "matched_pixels": int(ours_NT.sum()),
            "matched_pixels_of_the_port": port_NRT.sum((0, 2)).tolist(),
            "more_than_the_port_at_most": int(difference_NRT.max()),
            "fewer_than_the_port_at_most": int((-difference_NRT).max(initial=0)),
            "between_two_runs_of_the_port_at_most": int(np.ptp(port_NRT, axis=1).max()),
            "odsF": ours_f,
            "odsF_of_the_port": port_f_R,
            "largest_difference_in_odsF_points": float(np.abs(np.subtract(port_f_R, ours_f)).max()),
        }

    def _ods(self, matched_NT: np.ndarray) -> float:
        """odsF in percent over the thresholds compared; predicted and true pixels are the same for both."""
        predicted_T = sum(counts.predicted_T[self.some_T] for counts in self._counts_N)
        truth = sum(counts.truth for counts in self._counts_N)
        return 100 * float(f_measure(*precision_recall(matched_NT.sum(0), predicted_T, truth)).max())

    def _port(self, maps_THW: np.ndarray, truth_HW: np.ndarray, max_dist: float) -> dict[str, Any]:
        message = io.BytesIO()
        np.savez(message, maps_THW=maps_THW, truth_HW=truth_HW.astype(bool), max_dist=max_dist)
        # Isolated (-I), or the worker's folder and our PYTHONPATH would come before its own packages.
        command = [self.python, "-I", port_worker.__file__]
        try:
            done = subprocess.run(command, input=message.getvalue(), capture_output=True, check=True)
            return json.loads(done.stdout)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"").decode(errors="replace").strip()
            raise UserError(
                f"--port {self.python} does not run the port ({said.splitlines()[-1] if said else error}); "
                "name the python of an environment with pyEdgeEval, as docs/evaluation.md says"
            ) from error
