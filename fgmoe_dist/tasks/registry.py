"""Which tasks there are: a line for each, and the general ones that a data set's own tasks are made of."""

from __future__ import annotations

from fgmoe_dist.tasks.base import Task
from fgmoe_dist.tasks.binary_map import BinaryTask
from fgmoe_dist.tasks.boundary_map import BoundaryTask
from fgmoe_dist.tasks.class_map import ClassTask
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.edge import Edge
from fgmoe_dist.tasks.human_parts import HumanParts
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.sal import Saliency
from fgmoe_dist.tasks.scalar_map import ScalarTask
from fgmoe_dist.tasks.semseg import Semseg
from fgmoe_dist.tasks.vector_map import VectorTask

TASKS: dict[str, type[Task]] = {
    "semseg": Semseg,
    "human_parts": HumanParts,
    "sal": Saliency,
    "normals": Normals,
    "depth": Depth,
    "edge": Edge,
}

# What a data set's own task is made of, by the kind of its label.
KINDS: dict[str, type[Task]] = {
    "classes": ClassTask,
    "binary": BinaryTask,
    "scalar": ScalarTask,
    "vectors": VectorTask,
    "boundary": BoundaryTask,
}
