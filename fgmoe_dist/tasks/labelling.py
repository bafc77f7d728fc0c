"""The labels of a data set: those of the registered tasks, and those that the data set says of its own.

Nothing that handles data tells tasks apart by their names: it asks the label of a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import KINDS, Label, by_key
from fgmoe_dist.plugins import HINT
from fgmoe_dist.tasks.base import DatasetInfo
from fgmoe_dist.tasks.registry import TASKS

RESERVED = ("id", "image", "features", "total", "delta_m")  # keys of samples, losses and scores that are no tasks


# Of the registered tasks, which mean the same in every data set: what functions of single samples take where nobody
# says which data set they are of.
KNOWN_KEYS = by_key({name: task.label for name, task in TASKS.items()})


def labels_of(
    tasks: Iterable[str],
    classes: Mapping[str, Sequence[str]],
    definitions: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Label]:
    """The labels of a data set, by key of a sample.

    Args:
        tasks: that it has labels for.
        classes: the names of the classes of each task that has some.
        definitions: the kind and the options of every task that is not registered, as `index.json` has them, and what
            else there is to say of others.

    Raises:
        UserError: a name that no key may have, a task that nothing defines, or a definition that makes no sense.
    """
    labels = {}
    for task in tasks:
        if task in RESERVED or not re.fullmatch("[a-z][a-z0-9_]*", task):
            raise UserError(f"task {task!r}: give another name, of a-z, 0-9 and _, but not {', '.join(RESERVED)}")
        definition = (definitions or {}).get(task)
        try:
            label = _known(task, definition) if task in TASKS else _defined(task, definition)
            labels[task] = label.with_classes(classes.get(task))
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"task {task}: {error}") from error
    return by_key(labels)


def _known(task: str, definition: object) -> Label:
    """A definition may say more of a task that everybody knows, such as its colours, but nothing else."""
    label = TASKS[task].label
    if definition is not None and (not isinstance(definition, Mapping) or definition.get("kind") != label.kind):
        raise UserError(f"task {task} is of kind {label.kind}, but the data set defines it as {definition!r}")
    return label


def _defined(task: str, definition: object) -> Label:
    if not isinstance(definition, Mapping):
        raise UserError(
            f"task {task!r} is none of {', '.join(TASKS)}: the data set must define its kind of label{HINT}"
        )
    kind = definition.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"task {task}: its kind of label is {kind!r}: use one of {', '.join(KINDS)}{HINT}")
    return KINDS[kind].of(definition)


def require_labels(names: Iterable[str], info: DatasetInfo, what: str) -> None:
    """Raise `UserError` unless every task named has labels in the data set; `what` names it in the message."""
    missing = [name for name in names if name not in info.tasks]
    if missing:
        raise UserError(
            f"tasks: {what} have no labels for {', '.join(missing)}; set tasks to some of {', '.join(info.tasks)}"
        )
