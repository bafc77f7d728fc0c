"""Surface normals: directions in camera space."""

from fgmoe_dist.tasks.vector_map import DirectionTask


class Normals(DirectionTask):
    name, title = "normals", "surface normals"
