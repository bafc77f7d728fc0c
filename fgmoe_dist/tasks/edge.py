"""Boundaries of things, or of regions. The data set says how far off a predicted pixel may lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fgmoe_dist.tasks.base import DatasetInfo
from fgmoe_dist.tasks.boundary_map import BoundaryTask


class Edge(BoundaryTask):
    name, title = "edge", "boundaries"

    @classmethod
    def create(cls, name: str, info: DatasetInfo, facts: Mapping[str, Any], options: Mapping[str, Any]) -> BoundaryTask:
        return super().create(name, info, {"max_dist": info.boundary_max_dist}, options)
