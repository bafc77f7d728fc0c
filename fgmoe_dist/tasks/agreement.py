"""Whether two data sets mean the same by some tasks: a model of the one makes no sense on the labels of the other.

Class 3 is another thing where the classes stand in another order, and a boundary is matched within another radius; the
numbers come out all the same, and are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fgmoe_dist.labels import Label
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.tasks.base import DatasetInfo, Task

PLAIN = (str, int, float, bool, list, tuple, dict, Label)


def differences(names: Sequence[str], one: DatasetInfo, other: DatasetInfo, called: tuple[str, str]) -> list[str]:
    """What differs, a line for each task that both have.

    Args:
        names: of tasks.
        one, other: the data sets, of which a checkpoint's state is one too.
        called: what they are called in a line, as in ("the checkpoint", "the shards").

    Raises:
        UserError: a task cannot be made of what one of them says.
    """
    both = [name for name in names if name in one.tasks and name in other.tasks]
    pairs = zip(create_tasks(both, one), create_tasks(both, other))
    return [line for mine, yours in pairs for line in list(_differences(mine, yours, called))[:1]]


def _differences(mine: Task, yours: Task, called: tuple[str, str]) -> Iterator[str]:
    facts, others = _facts(mine), _facts(yours)
    if mine.label.kind != yours.label.kind:
        yield f"{mine.name}: of kind {mine.label.kind} in {called[0]}, of kind {yours.label.kind} in {called[1]}"
        return
    if "class_names" in facts and facts["class_names"] != others.get("class_names"):
        yield f"{mine.name}: {_classes(facts['class_names'], others['class_names'], called)}"
    for key in dict.fromkeys([*facts, *others]):
        if facts.get(key) != others.get(key):
            told = (f"{key} is {found.get(key)} in {what}" for found, what in zip((facts, others), called))
            yield f"{mine.name}: {', '.join(told)}"


def _facts(task: Task) -> dict[str, Any]:
    """What a task has of its data set; its label says the same again in other words, and so comes last."""
    facts = {key: value for key, value in vars(task).items() if isinstance(value, PLAIN)}
    return {**{key: value for key, value in facts.items() if key != "label"}, "label": task.label}


def _classes(mine: Sequence[str], yours: Sequence[str], called: tuple[str, str]) -> str:
    """How two lists of classes differ: in their number, in their order, or where first."""
    if len(mine) != len(yours):
        return f"{len(mine)} classes in {called[0]}, {len(yours)} in {called[1]}"
    first = next(number for number, names in enumerate(zip(mine, yours)) if names[0] != names[1])
    how = "the same classes in another order: " if sorted(mine) == sorted(yours) else ""
    return f"{how}class {first} is {mine[first]} in {called[0]}, {yours[first]} in {called[1]}"
