"""The pinhole camera, and the choice of where a photographer would stand.

Camera frame: x right, y up, z towards the viewer (OpenGL's); depth is the distance along -z, in metres.
Shapes: N rays, one per pixel, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fgmoe_dist.rooms.geometry import rotation
from fgmoe_dist.rooms.scene import Scene
from fgmoe_dist.rooms.tracer import Tracer

_SHELL = ("wall", "floor", "ceiling")
_PROBE = (18, 24)


@dataclass(frozen=True)
class Camera:
    """`turn` takes camera axes to the world's; `focal` is in widths of the image."""

    at: np.ndarray
    turn: np.ndarray
    focal: float

    def rays(self, size: tuple[int, int], offset: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """World directions through the pixel centres, moved by (x, y) pixels; their depth component is 1. `[N, 3]`"""
        height, width = size
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        scale = 1 / (self.focal * width)
        return self.through((x + 0.5 + offset[0] - width / 2) * scale, (height / 2 - y - 0.5 - offset[1]) * scale)

    def through(self, right_N: np.ndarray, up_N: np.ndarray) -> np.ndarray:
        """World directions through points of the plane at depth 1."""
        axis_x, axis_y, axis_z = self.turn.T
        return right_N[:, None] * axis_x + up_N[:, None] * axis_y - axis_z


def look_at(at: ArrayLike, target: ArrayLike, focal: float, roll: float = 0.0) -> Camera:
    """A camera at a place that looks at another."""
    back = np.asarray(at, float) - target
    back /= np.linalg.norm(back)
    right = np.cross((0, 0, 1.0), back)
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(back, right), back], axis=1)
    return Camera(np.asarray(at, float), turn @ rotation("z", roll), focal)


def choose(scene: Scene, tracer: Tracer, rng: np.random.Generator, layout: str, tries: int = 18) -> Camera:
    """The best of some random views: many things and few bare walls in it, nothing right before the lens."""
    centres, weights = _subjects(scene, layout)
    best, best_score = None, -np.inf
    for _ in range(tries):
        camera = _random_view(scene, rng, centres, weights)
        score = _score(scene, tracer, camera, layout)
        if score > best_score:
            best, best_score = camera, score
    return best


def _subjects(scene: Scene, layout: str) -> tuple[np.ndarray, np.ndarray]:
    interest = np.array([_interest(kind, layout) for kind in scene.kinds])
    middle_T3 = scene.vertex_T33.mean(1)
    count = np.bincount(scene.thing_T, minlength=len(scene.kinds))
    sums = [np.bincount(scene.thing_T, middle_T3[:, axis], len(scene.kinds)) for axis in range(3)]
    return np.stack(sums, -1) / count[:, None], (interest + 1e-9) / (interest + 1e-9).sum()


def _interest(kind: str, layout: str) -> float:
    if kind in (*_SHELL, "door", "window", "curtain", "blinds", "column"):
        return 0.0
    return 6.0 if layout == "pascal" and kind in ("person", "cat", "dog") else 1.0


def _random_view(scene: Scene, rng: np.random.Generator, centres: np.ndarray, weights: np.ndarray) -> Camera:
    width, depth, height = scene.size
    at = np.array([*rng.uniform(0.25, (width - 0.25, depth - 0.25)), rng.uniform(1.15, min(1.85, height - 0.5))])
    wall = rng.integers(4)  # most pictures of rooms are taken with one's back to a wall
    at[wall % 2] = (0.25, (width, depth)[wall % 2] - 0.25)[wall // 2] + rng.uniform(0, 0.15) * (1, -1)[wall // 2]
    target = centres[rng.choice(len(centres), 3, p=weights)].mean(0)
    away = target - at
    flat = max(np.hypot(*away[:2]), 0.4)
    away[2] = np.clip(away[2], -0.38 * flat, -0.04 * flat)
    focal = 0.5 / np.tan(np.radians(rng.uniform(58, 80)) / 2)
    return look_at(at, at + away, focal, rng.normal(0, 0.015))


def _score(scene: Scene, tracer: Tracer, camera: Camera, layout: str) -> float:
    direction_N3 = camera.rays(_PROBE)
    hit = tracer.cast(np.broadcast_to(camera.at, direction_N3.shape), direction_N3)
    if (hit.triangle_N < 0).any():
        return -np.inf
    kinds = np.array(scene.kinds)
    seen, count = np.unique(scene.thing_T[hit.triangle_N], return_counts=True)
    share = count / count.sum()
    bare = share[np.isin(kinds[seen], ("wall", "ceiling"))].sum()
    things = ~np.isin(kinds[seen], _SHELL)
    near = (hit.distance_N < 1.1).mean()
    variety = np.sqrt(share[things]).sum()
    subjects = sum(np.sqrt(s) for s, k in zip(share, kinds[seen], strict=True) if _interest(k, layout) > 1)
    crowding = max(0.0, share[things].max(initial=0) - 0.35)
    return variety + 0.8 * subjects - 2.0 * max(0, bare - 0.35) - 6 * near - 3 * crowding
