"""Boundary map: the training target, 0 or 1 with 255 = ignore, and beside it the ground truth that odsF matches.

The two differ: the target may be some pixels wide and have ignored pixels; the ground truth is thinned.
"""

from __future__ import annotations

from dataclasses import dataclass

from fgmoe_dist.labels.base import Label
from fgmoe_dist.labels.binary import BinaryMap


@dataclass(frozen=True)
class BoundaryMap(BinaryMap):
    kind = "boundary"

    def companions(self, key: str) -> dict[str, Label]:
        return {truth_key(key): BinaryMap()}


def truth_key(task: str) -> str:
    """The key of a task's thinned ground truth: `<task>_boundary`, but `boundary` for `edge`, as the files have it."""
    return "boundary" if task == "edge" else f"{task}_boundary"
