"""Ray casting with Embree.

Shapes: T triangles, N rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import ArrayLike

_FAR = np.float32(1e30)


@dataclass(frozen=True)
class Hits:
    """What each ray met first; `triangle` is -1 for nothing. `u`, `v` weigh the triangle's second and third corner."""

    triangle_N: np.ndarray
    distance_N: np.ndarray
    u_N: np.ndarray
    v_N: np.ndarray


class Tracer:
    """Two views of one set of triangles: all of them, and those that cast shadows."""

    def __init__(self, vertex_T33: np.ndarray, casts_T: np.ndarray | None = None):
        self._all = _commit(vertex_T33)
        self._casters = self._all if casts_T is None else _commit(vertex_T33[casts_T])

    def cast(self, origin_N3: np.ndarray, direction_N3: np.ndarray) -> Hits:
        """The first hits; distances are in lengths of the direction."""
        out = self._all.run(_floats(origin_N3), _floats(direction_N3), query="INTERSECT", output=True)
        return Hits(out["primID"], out["tfar"], out["u"], out["v"])

    def blocked(self, origin_N3: np.ndarray, direction_N3: np.ndarray, reach_N: np.ndarray | None = None) -> np.ndarray:
        """Whether a shadow caster lies within `reach` lengths of the direction. `[N]` bool"""
        reach = np.full(len(origin_N3), _FAR) if reach_N is None else _floats(reach_N)
        return self._casters.run(_floats(origin_N3), _floats(direction_N3), dists=reach, query="OCCLUDED") == 0


def _commit(vertex_T33: np.ndarray) -> EmbreeScene:
    scene = EmbreeScene()
    TriangleMesh(scene, _floats(vertex_T33))
    return scene


def _floats(values: ArrayLike) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
