"""The tasks, and the one place that turns their names into objects.

A new task is a file here with a subclass of `Task`, or of one of the five general ones, and its line in `TASKS`
(`registry.py`). A data set can also define tasks of its own, of the five kinds in `KINDS`, without any code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from fgmoe_dist.errors import UserError, first_line
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.plugins import HINT
from fgmoe_dist.tasks.base import IGNORE, DataSetFacts, DatasetInfo, Task
from fgmoe_dist.tasks.labelling import labels_of, require_labels
from fgmoe_dist.tasks.registry import KINDS, TASKS

__all__ = [
    "IGNORE", "KINDS", "TASKS", "DataSetFacts", "DatasetInfo", "Task", "baselines", "create_tasks", "headlines",
    "labels_of",
]  # fmt: skip


def create_tasks(
    names: Sequence[str], info: DatasetInfo, edge_positive_weight: float = 0.95, class_balance: float = 0.0
) -> list[Task]:
    """The tasks named, in that order.

    Args:
        names: of `TASKS`, or defined by the data set.
        info: the data set.
        edge_positive_weight: the weight of boundary pixels in the loss of boundary tasks.
        class_balance: how far the loss of tasks of classes evens their gradients; 0: not at all.

    Raises:
        UserError: the data set has no labels for a task, or nobody knows what it is.
    """
    require_labels(names, info, "the shards")
    options = {"edge_positive_weight": edge_positive_weight, "class_balance": class_balance}
    return [_create_whole(name, info, options) for name in names]


def _create_whole(name: str, info: DatasetInfo, options: dict[str, Any]) -> Task:
    try:
        return _create(name, info, options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # of an index or a state that somebody edited
        if isinstance(error, UserError):
            raise
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"tasks: {name}: what the data set says of it is not whole ({what}); rebuild it") from error


def _create(name: str, info: DatasetInfo, options: dict[str, Any]) -> Task:
    definitions = getattr(info, "definitions", None) or {}
    if name in TASKS:
        return TASKS[name].create(name, info, definitions.get(name, {}), options)
    if name not in definitions:
        near = _nearest(name, [*TASKS, *definitions])
        raise UserError(f"tasks: {name} is no task{near}, and the data set defines none{HINT}")
    facts = dict(definitions[name])
    kind = facts.pop("kind", None)
    if kind not in KINDS:
        raise UserError(
            f"tasks: {name} is of kind {kind}{_nearest(str(kind), KINDS)}; use one of {', '.join(KINDS)}{HINT}"
        )
    task = KINDS[kind].create(name, info, facts, options)
    task.label = labels_of([name], info.classes, definitions)[name]
    return task


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def baselines(tasks: Iterable[Task]) -> dict[str, ConstantBaseline]:
    """A fresh baseline by name for each task that has one."""
    found = {task.name: task.baseline() for task in tasks}
    return {name: baseline for name, baseline in found.items() if baseline is not None}


def headlines(tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
    """By task, what a comparison of runs needs to know of it: the `metric`, its sign, and its `scale` in a mean."""
    return {
        task.name: {
            "metric": task.headline,
            "lower_is_better": task.lower_is_better,
            "scale": float(task.headline_scale),
        }
        for task in tasks
    }
