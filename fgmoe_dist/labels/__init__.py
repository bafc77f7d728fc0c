"""Kinds of label as objects.

A kind knows how a label is stored, checked, augmented, batched and brought back to a photograph's pixels. So nothing
that handles data tells tasks apart by their names: it asks the label of a key.
"""

from __future__ import annotations

from collections.abc import Mapping

from fgmoe_dist.errors import UserError
from fgmoe_dist.labels.base import IntegerMap, Label
from fgmoe_dist.labels.binary import BinaryMap
from fgmoe_dist.labels.boundary import BoundaryMap
from fgmoe_dist.labels.classes import ClassMap
from fgmoe_dist.labels.scalar import ScalarMap
from fgmoe_dist.labels.storage import CodecError, Stored
from fgmoe_dist.labels.vectors import VectorMap
from fgmoe_dist.metrics.meter import IGNORE

__all__ = [
    "IGNORE", "KINDS", "BinaryMap", "BoundaryMap", "ClassMap", "CodecError", "IntegerMap",
    "Label", "ScalarMap", "Stored", "VectorMap", "by_key",
]  # fmt: skip

KINDS: dict[str, type[Label]] = {
    "classes": ClassMap,
    "binary": BinaryMap,
    "scalar": ScalarMap,
    "vectors": VectorMap,
    "boundary": BoundaryMap,
}


def by_key(labels: Mapping[str, Label]) -> dict[str, Label]:
    """The labels of all keys of a sample: each task's own, and what evaluation reads beside it.

    Raises:
        UserError: a task has the name of another key.
    """
    keys = dict(labels)
    for task, label in labels.items():
        for key, companion in label.companions(task).items():
            if key in labels:
                raise UserError(f"task {key!r} has the name of the ground truth that {task} is scored by: rename it")
            keys[key] = companion
    return keys
