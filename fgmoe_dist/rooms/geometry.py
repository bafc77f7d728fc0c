"""Triangle solids: the few shapes that all furniture and people are made of.

Shapes: T triangles, A x B a grid of points, K points of a profile. Metres; z is up.
A *slot* names the material of some triangles ("legs", "seat"); the scene paints slots later. A *part* names a body
part, "" for everything else. A *patch* is one flat face or one smooth surface: the renderer smooths light within
a patch only and never across.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

_SIDES = 12

# The unit cube's faces as (corner, first edge, second edge), counter-clockwise seen from outside.
_CUBE_FACES = np.array(
    [
        [[0, 0, 0], [0, 1, 0], [1, 0, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        [[0, 0, 0], [1, 0, 0], [0, 0, 1]],
        [[1, 1, 0], [-1, 0, 0], [0, 0, 1]],
        [[0, 1, 0], [0, -1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ],
    float,
)
_QUAD_ST = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]], float)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`np.cross` of three-vectors, without its overhead, which is most of the time small shapes take."""
    a0, a1, a2 = a[..., 0], a[..., 1], a[..., 2]
    b0, b1, b2 = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], -1)


def rotation(axis: str, angle: float) -> np.ndarray:
    """The 3x3 matrix that turns by `angle` radians about a coordinate axis, right-handed."""
    cos, sin = np.cos(angle), np.sin(angle)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = cos
    matrix[i, j], matrix[j, i] = -sin, sin
    return matrix


@dataclass
class Triangles:
    """Parallel arrays over T triangles; `slots` and `parts` are what `slot` and `part` index."""

    vertex_T33: np.ndarray
    normal_T33: np.ndarray
    uv_T32: np.ndarray
    slot_T: np.ndarray
    part_T: np.ndarray
    patch_T: np.ndarray
    slots: list[str]
    parts: list[str]
    patches: int

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Lower and upper corner, `[2, 3]`."""
        points = self.vertex_T33.reshape(-1, 3)
        return np.stack([points.min(0), points.max(0)])

    @functools.cached_property
    def outline(self) -> np.ndarray:
        """A few points that span the solid seen from above, whichever way it is turned, and its height. `[18, 3]`"""
        points = self.vertex_T33.reshape(-1, 3)
        angle = np.arange(16) * np.pi / 8
        far = (points[:, :1] * np.cos(angle) + points[:, 1:2] * np.sin(angle)).argmax(0)
        return points[[*far, points[:, 2].argmin(), points[:, 2].argmax()]]


@dataclass
class Solid:
    """Collects shapes in a frame of their own; `turn` and `shift` place what is added next."""

    pieces: list = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=lambda: [""])
    patches: int = 0

    def _add(
        self,
        vertex_T33: np.ndarray,
        normal_T33: np.ndarray,
        uv_T32: np.ndarray,
        patch_T: np.ndarray,
        slot: str,
        part: str,
    ) -> None:
        for names, name in ((self.slots, slot), (self.parts, part)):
            if name not in names:
                names.append(name)
        count = len(vertex_T33)
        indices = [np.full(count, self.slots.index(slot)), np.full(count, self.parts.index(part))]
        self.pieces.append((vertex_T33, normal_T33, uv_T32, *indices, patch_T + self.patches))
        self.patches += int(patch_T[-1]) + 1

    def triangles(self) -> Triangles:
        arrays = [np.concatenate(column) for column in zip(*self.pieces, strict=True)]
        return Triangles(*arrays, self.slots, self.parts, self.patches)

    def quad(
        self,
        corner: ArrayLike,
        edge_s: ArrayLike,
        edge_t: ArrayLike,
        slot: str,
        part: str = "",
        uv: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """One flat parallelogram facing edge_s x edge_t; its texture starts at `uv` metres."""
        faces = np.array([[corner, edge_s, edge_t]], float)
        self._faces(faces, np.array([uv], float), slot, part)

    def box(self, low: ArrayLike, high: ArrayLike, slot: str, part: str = "") -> None:
        """A box between two corners."""
        low, high = np.asarray(low, float), np.asarray(high, float)
        faces = _CUBE_FACES * (high - low)
        faces[:, 0] += low
        self._faces(faces, np.zeros((6, 2)), slot, part)

    def _faces(self, faces_F33: np.ndarray, uv_F2: np.ndarray, slot: str, part: str) -> None:
        count = len(faces_F33)
        st = np.broadcast_to(_QUAD_ST, (count, 2, 3, 2))
        corner, edge_s, edge_t = (faces_F33[:, None, None, i] for i in range(3))
        vertex = corner + st[..., :1] * edge_s + st[..., 1:] * edge_t
        normal = cross(faces_F33[:, 1], faces_F33[:, 2])
        normal /= np.sqrt((normal * normal).sum(-1, keepdims=True))
        lengths = np.sqrt((faces_F33[:, 1:] ** 2).sum(-1))
        uv = uv_F2[:, None, None] + st * lengths[:, None, None]
        self._add(
            vertex.reshape(-1, 3, 3),
            np.repeat(normal, 6, axis=0).reshape(-1, 3, 3),
            uv.reshape(-1, 3, 2),
            np.repeat(np.arange(count), 2),
            slot,
            part,
        )

    def grid(self, point_AB3: np.ndarray, normal_AB3: np.ndarray, slot: str, part: str = "") -> None:
        """A smooth sheet through a grid of points with given normals."""
        side_a, side_b = point_AB3.shape[:2]
        middle_a, middle_b = side_a // 2, side_b // 2
        u = _lengths(point_AB3[middle_a])
        v = _lengths(point_AB3[:, middle_b])
        uv_AB2 = np.empty((side_a, side_b, 2))
        uv_AB2[..., 0], uv_AB2[..., 1] = u, v[:, None]
        corner_T3 = _cells(side_a, side_b)
        self._add(
            point_AB3.reshape(-1, 3)[corner_T3],
            normal_AB3.reshape(-1, 3)[corner_T3],
            uv_AB2.reshape(-1, 2)[corner_T3],
            np.zeros(len(corner_T3), int),
            slot,
            part,
        )

    def lathe(
        self,
        profile_K2: ArrayLike,
        slot: str,
        part: str = "",
        at: ArrayLike = (0, 0, 0),
        squash: tuple[float, float] = (1, 1),
        turn: np.ndarray | None = None,
        sides: int = _SIDES,
    ) -> None:
        """A profile of (radius, height) spun about z, squashed along x and y, turned, then moved to `at`."""
        radius, height = np.asarray(profile_K2, float).T
        circle = _circle(sides)
        point = np.empty((len(radius), sides + 1, 3))
        point[..., :2] = radius[:, None, None] * circle * squash
        point[..., 2] = height[:, None]
        slope_r, slope_z = np.gradient(radius), np.gradient(height)
        normal = np.empty_like(point)
        normal[..., :2] = slope_z[:, None, None] * circle / squash
        normal[..., 2] = -slope_r[:, None]
        normal[radius < 1e-9, :, :2] = 0  # at a pole the difference is one-sided, the normal is not
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        if turn is not None:
            point, normal = point @ turn.T, normal @ turn.T
        self.grid(point + at, normal, slot, part)

    def cylinder(
        self,
        at: ArrayLike,
        radius: float,
        height: float,
        slot: str,
        part: str = "",
        top: float | None = None,
        sides: int = _SIDES,
    ) -> None:
        """An upright (truncated) cone with flat, sharp ends."""
        top = radius if top is None else top
        self.lathe([[radius, 0], [top, height]], slot, part, at, sides=sides)
        self.lathe([[top, height], [1e-4, height]], slot, part, at, sides=sides)
        self.lathe([[1e-4, 0], [radius, 0]], slot, part, at, sides=sides)

    def tube(
        self,
        start: ArrayLike,
        end: ArrayLike,
        radius: float,
        slot: str,
        part: str = "",
        end_radius: float | None = None,
        sides: int = 8,
    ) -> None:
        """A round-ended limb from `start` to `end`."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        end_radius = radius if end_radius is None else end_radius
        axis = end - start
        length = np.linalg.norm(axis)
        bend = np.linspace(0, np.pi / 2, 4)
        low = np.stack([radius * np.sin(bend), -radius * np.cos(bend)], -1)
        high = np.stack([end_radius * np.cos(bend), length + end_radius * np.sin(bend)], -1)
        self.lathe(np.concatenate([low, high]), slot, part, start, turn=frame(axis), sides=sides)

    def ball(
        self,
        at: ArrayLike,
        radii: Sequence[float],
        slot: str,
        part: str = "",
        turn: np.ndarray | None = None,
        sides: int = _SIDES,
    ) -> None:
        """An ellipsoid."""
        bend = np.linspace(0, np.pi, sides // 2 + 2)
        profile = np.stack([np.sin(bend), -radii[2] * np.cos(bend)], -1)
        self.lathe(profile, slot, part, at, squash=(radii[0], radii[1]), turn=turn, sides=sides)

    def cushion(
        self,
        low: ArrayLike,
        high: ArrayLike,
        slot: str,
        part: str = "",
        power: float = 4.0,
        turn: np.ndarray | None = None,
    ) -> None:
        """A soft box: the superellipsoid of that power that fills the box. `turn` is about its middle."""
        low, high = np.asarray(low, float), np.asarray(high, float)
        middle, half = (low + high) / 2, (high - low) / 2
        sphere = _sphere(11, 25)
        # Pushing a sphere's points out along their rays keeps corners better filled than the angle formula does.
        size = (np.abs(sphere) ** power).sum(-1, keepdims=True) ** (1 / power)
        unit = sphere / size
        normal = np.sign(unit) * np.abs(unit) ** (power - 1) / half
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        point = unit * half
        if turn is not None:
            point, normal = point @ turn.T, normal @ turn.T
        self.grid(point + middle, normal, slot, part)


def _lengths(point_K3: np.ndarray) -> np.ndarray:
    """How far along a line of points each of them lies."""
    step = point_K3[1:] - point_K3[:-1]
    return np.concatenate([[0.0], np.sqrt((step * step).sum(-1)).cumsum()])


@functools.cache
def _circle(sides: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


@functools.cache
def _sphere(rows: int, columns: int) -> np.ndarray:
    up = np.linspace(-np.pi / 2, np.pi / 2, rows)[:, None]
    around = np.linspace(-np.pi, np.pi, columns)
    height = np.broadcast_to(np.sin(up), (rows, columns))
    return np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), height], -1)


@functools.cache
def _cells(side_a: int, side_b: int) -> np.ndarray:
    """Corners of the two triangles of every cell of a grid. `[T, 3]`"""
    at = np.arange(side_a * side_b).reshape(side_a, side_b)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    return np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3)


def frame(axis: ArrayLike) -> np.ndarray:
    """A rotation that takes z to the direction of `axis`."""
    z = np.asarray(axis, float) / np.linalg.norm(axis)
    helper = np.array([1.0, 0, 0]) if abs(z[0]) < 0.9 else np.array([0, 1.0, 0])
    x = cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, cross(z, x), z], axis=1)
