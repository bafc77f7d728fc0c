"""The six tasks, and the one place that turns their names into objects."""

from __future__ import annotations

from typing import Protocol, Sequence

from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks.base import IGNORE, Task
from fgmoe_dist.tasks.classes import ClassTask
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.edge import Edge
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.sal import Saliency

__all__ = ["IGNORE", "TASKS", "DatasetInfo", "Task", "create_tasks"]


TASKS = ("semseg", "human_parts", "sal", "normals", "depth", "edge")


class DatasetInfo(Protocol):
    """What tasks need to know of a data set: a `ShardSet` has it, and so has a checkpoint."""

    tasks: list[str]
    classes: dict[str, list[str]]
    boundary_max_dist: float


def create_tasks(names: Sequence[str], info: DatasetInfo, edge_positive_weight: float = 0.95) -> list[Task]:
    """The tasks named, in that order. UserError if the data set has no labels for one."""
    missing = [name for name in names if name not in info.tasks]
    if missing:
        raise UserError(f"tasks: the shards have no {', '.join(missing)}; they have {', '.join(info.tasks)}")
    create = {
        "semseg": lambda: ClassTask("semseg", info.classes["semseg"]),
        "human_parts": lambda: ClassTask("human_parts", info.classes["human_parts"]),
        "sal": Saliency,
        "normals": Normals,
        "depth": Depth,
        "edge": lambda: Edge(edge_positive_weight, info.boundary_max_dist),
    }
    return [create[name]() for name in names]
