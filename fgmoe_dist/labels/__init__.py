"""Kinds of label as objects, the kinds of the six tasks that everybody knows, and what a data set says of its own.

A kind knows how a label is stored, checked, augmented, batched and brought back to a photograph's pixels. So nothing
that handles data tells tasks apart by their names: it asks the label of a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.labels.base import IGNORE, IntegerMap, Label
from fgmoe_dist.labels.binary import BinaryMap
from fgmoe_dist.labels.boundary import BoundaryMap
from fgmoe_dist.labels.classes import ClassMap
from fgmoe_dist.labels.scalar import ScalarMap
from fgmoe_dist.labels.storage import CodecError, Stored
from fgmoe_dist.labels.vectors import VectorMap

__all__ = [
    "IGNORE", "KINDS", "KNOWN", "KNOWN_KEYS", "BinaryMap", "BoundaryMap", "ClassMap", "CodecError", "IntegerMap",
    "Label", "ScalarMap", "Stored", "VectorMap", "by_key", "labels_of",
]  # fmt: skip

KINDS: dict[str, type[Label]] = {
    "classes": ClassMap,
    "binary": BinaryMap,
    "scalar": ScalarMap,
    "vectors": VectorMap,
    "boundary": BoundaryMap,
}

# The tasks that need no definition in a data set: their labels mean the same in all of them.
KNOWN: dict[str, Label] = {
    "semseg": ClassMap(),
    "human_parts": ClassMap(),
    "sal": BinaryMap(),
    "normals": VectorMap(3, unit=True),
    "depth": ScalarMap("metres", scales="inverse", positive=True),
    "edge": BoundaryMap(),
}

RESERVED = ("id", "image", "features")  # keys of samples and batches that are no labels


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


KNOWN_KEYS = by_key(KNOWN)


def labels_of(
    tasks: Iterable[str],
    classes: Mapping[str, Sequence[str]],
    definitions: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Label]:
    """The labels of a data set, by key of a sample.

    Args:
        tasks: that it has labels for.
        classes: the names of the classes of each task that has some.
        definitions: the kind and the options of every task that is none of `KNOWN`, as `index.json` has them.

    Raises:
        UserError: a name that no key may have, a task that nothing defines, or a definition that makes no sense.
    """
    labels = {}
    for task in tasks:
        if task in RESERVED or not re.fullmatch("[a-z][a-z0-9_]*", task):
            raise UserError(f"task {task!r}: give another name, of a-z, 0-9 and _, but not {', '.join(RESERVED)}")
        try:
            label = KNOWN[task] if task in KNOWN else _defined(task, (definitions or {}).get(task))
            labels[task] = label.with_classes(classes.get(task))
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"task {task}: {error}") from error
    return by_key(labels)


def _defined(task: str, definition: object) -> Label:
    if not isinstance(definition, Mapping):
        raise UserError(f"task {task!r} is none of {', '.join(KNOWN)}: the data set must define its kind of label")
    kind = definition.get("kind")
    if kind not in KINDS:
        raise UserError(f"task {task}: its kind of label is {kind!r}: use one of {', '.join(KINDS)}")
    return KINDS[kind].of(definition)
