"""A furnished, painted and lit room as flat triangle arrays: what the renderer and the label writers read.

The room is [0, width] x [0, depth] x [0, height] metres, z up. Wall k's frame has its back in the wall and its front
looking into the room, as furniture has, so one placement serves a wall, what hangs on it and what stands against it.

Shapes: T triangles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from fgmoe_dist.rooms.furniture import Thing, make
from fgmoe_dist.rooms.geometry import Solid, rotation
from fgmoe_dist.rooms.textures import Paint, Painter


@dataclass(frozen=True)
class Light:
    """A parallelogram of light, or with `distant` a sun whose `centre` is the direction towards it."""

    centre: np.ndarray
    edge_s: np.ndarray
    edge_t: np.ndarray
    power: np.ndarray  # RGB: irradiance at 1 m (or at any distance, for the sun) of a surface facing it
    normal: np.ndarray | None = None  # None: shines to all sides
    distant: bool = False


@dataclass
class Scene:
    """Triangles of all things; thing i is of kind `kinds[i]`."""

    vertex_T33: np.ndarray
    normal_T33: np.ndarray
    uv_T32: np.ndarray
    material_T: np.ndarray
    thing_T: np.ndarray
    part_T: np.ndarray
    patch_T: np.ndarray
    casts_T: np.ndarray  # whether it throws a shadow: lamps' shades and panes do not
    kinds: list[str]
    parts: list[str]  # names that part_T indexes, "" first
    shapes: list[np.ndarray]  # each thing's vertices in its own frame, to prove that no two are the same
    paint: Paint
    lights: list[Light]
    size: np.ndarray  # the room's width, depth, height


@dataclass
class Placed:
    thing: Thing
    turn: np.ndarray
    at: np.ndarray
    taken: list = field(default_factory=list)  # (spot, radius) of what lies on it
    brightness: float = 0.0  # of its pane or shade

    def to_world(self, point: ArrayLike) -> np.ndarray:
        return self.turn @ np.asarray(point, float) + self.at


_THROUGH = ("shade", "pane", "cord")
_SHINY = ("floor", "top", "front", "case", "board", "glass", "clay", "body", "bowl", "metal")


class Room:
    """An empty room that is furnished piece by piece and then turned into a `Scene`."""

    def __init__(self, rng: np.random.Generator, look: np.random.Generator, size: ArrayLike):
        self.rng, self.look = rng, look
        self.size = np.asarray(size, float)
        self.placed: list[Placed] = []
        self.boxes: list[np.ndarray] = []  # [2, 3]: where nothing else may be put
        self.holes: dict[int, list] = {}  # wall -> (middle, width, low, height) of its windows, along its x
        self.lights: list[Light] = []

    # ------------------------------------------------------------------------------------------- placing

    def wall_frame(self, wall: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Turn, middle of the foot, and length of wall 0 (far), 1 (right), 2 (near) or 3 (left)."""
        width, depth, _ = self.size
        yaw = (0.0, -np.pi / 2, np.pi, np.pi / 2)[wall]
        middle = ((width / 2, depth, 0), (width, depth / 2, 0), (width / 2, 0, 0), (0, depth / 2, 0))[wall]
        return rotation("z", yaw), np.array(middle, float), (width, depth, width, depth)[wall]

    def put(self, thing: Thing, turn: np.ndarray, at: ArrayLike, box: np.ndarray | None = None) -> Placed:
        """Place without asking, and take the space."""
        placed = Placed(thing, turn, np.asarray(at, float))
        self.placed.append(placed)
        if box is not None:
            self.boxes.append(box)
        for child, offset, yaw in thing.children:
            self.put(child, turn @ rotation("z", yaw), placed.to_world(offset))
        return placed

    def _fits(self, box: np.ndarray, ignore: Sequence[int] = ()) -> bool:
        low, high = box
        if (low[:2] < -0.001).any() or (high > self.size + 0.001).any():
            return False
        others = (other for i, other in enumerate(self.boxes) if i not in ignore)
        return not any((low < other[1] - 0.01).all() and (other[0] + 0.01 < high).all() for other in others)

    @staticmethod
    def _box(thing: Thing, turn: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The box a placed thing fills. `[2, 3]`"""
        points = thing.shape.outline @ turn.T + at
        return np.stack([points.min(0), points.max(0)])

    def against(
        self,
        thing: Thing,
        wall: int | None = None,
        middle: float | None = None,
        gap: float = 0.0,
        clear: float = 0.0,
        tries: int = 14,
    ) -> Placed | None:
        """Put a thing with its back to a wall (any that has room); `clear` metres before it stay free. Or None."""
        low, high = thing.shape.bounds
        for _ in range(tries if middle is None else 1):
            turn, foot, length = self.wall_frame(self.rng.integers(4) if wall is None else wall)
            reach = length / 2 - max(-low[0], high[0]) - 0.02
            if reach < 0:
                continue
            along = self.rng.uniform(-reach, reach) if middle is None else middle
            at = foot + turn @ np.array([along, -min(high[1], 0.5 * length) - gap, 0])
            box = self._box(thing, turn, at)
            free = np.array([[low[0], low[1] - clear, 0], [high[0], low[1], 0]]) @ turn.T + at
            room = np.stack([np.minimum(box[0], free.min(0)), np.maximum(box[1], free.max(0))]) if clear else box
            if self._fits(room):
                return self.put(thing, turn, at, room)
        return None

    def stand(
        self,
        thing: Thing,
        at: ArrayLike | None = None,
        yaw: float | None = None,
        spread: float = 0.0,
        ignore: Sequence[int] = (),
        tries: int = 14,
    ) -> Placed | None:
        """Put a thing on the floor, anywhere or within `spread` of `at`. Or None."""
        for _ in range(tries):
            centre = self.rng.uniform((0.3, 0.3), self.size[:2] - 0.3) if at is None else np.asarray(at)[:2]
            centre = centre + self.rng.uniform(-spread, spread, 2)
            turn = rotation("z", self.rng.uniform(0, 2 * np.pi) if yaw is None else yaw)
            place = np.array([*centre, 0.0])
            box = self._box(thing, turn, place)
            if self._fits(box, ignore):
                return self.put(thing, turn, place, box)
        return None

    def on_top(self, base: Placed | None, thing: Thing, yaw_spread: float = 0.4, tries: int = 8) -> Placed | None:
        """Put a small thing on a free surface of another. Or None."""
        if base is None or not base.thing.tops:
            return None
        x0, x1, y0, y1, z = base.thing.tops[0]
        low, high = thing.shape.bounds
        need = max(high[0] - low[0], high[1] - low[1]) / 2
        for _ in range(tries):
            spot = np.array([self.rng.uniform(x0, x1), self.rng.uniform(y0, y1)])
            if all(np.hypot(*(spot - other)) > need + size for other, size in base.taken):
                base.taken.append((spot, need))
                turn = base.turn @ rotation("z", self.rng.normal(0, yaw_spread))
                return self.put(thing, turn, base.to_world((*spot, z)))
        return None

    # ------------------------------------------------------------------------------------------- the shell

    def window(self, wall: int) -> Placed | None:
        """A window in a wall with its curtain or blinds; its daylight. Or None where another already is."""
        rng = self.rng
        _, _, length = self.wall_frame(wall)
        width = min(rng.uniform(0.9, 2.0), length - 0.8)
        low, height = rng.uniform(0.75, 1.0), rng.uniform(1.0, 1.35)
        if rng.random() < 0.15:
            low, height = 0.1, 2.0
        height = min(height, self.size[2] - low - 0.25)
        reach = length / 2 - width / 2 - 0.3
        middle = rng.uniform(-reach, reach)
        thing = make("window", rng, width=width, height=height, low=low)
        turn, foot, _ = self.wall_frame(wall)
        at = foot + turn @ np.array([middle, 0, 0])
        box = (
            np.array([[-width / 2 - 0.25, -0.1, low - 0.05], [width / 2 + 0.25, 0, low + height + 0.25]]) @ turn.T + at
        )
        box = np.stack([box.min(0), box.max(0)])
        if not self._fits(box):
            return None
        self.holes.setdefault(wall, []).append((middle, width, low, height))
        cover = rng.random()
        if cover < 0.75:
            name = "curtain" if cover < 0.5 else "blinds"
            self.put(make(name, rng, width=width, height=height, low=low), turn, at)
        placed = self.put(thing, turn, at, box)
        self._daylight(placed, width, height, low)
        return placed

    def _daylight(self, placed: Placed, width: float, height: float, low: float) -> None:
        look = self.look
        placed.brightness = look.choice((0.08, look.uniform(0.8, 3.5)), p=(0.2, 0.8))
        if placed.brightness < 0.1:
            return
        turn = placed.turn
        colour = np.array([0.82, 0.93, 1.08]) ** look.uniform(0, 1.5)
        centre = placed.to_world((0, 0.02, low + height / 2))
        edges = turn @ np.array([width * 0.95, 0, 0]), np.array([0, 0, height * 0.95])
        power = placed.brightness * 1.6 * width * height * colour
        self.lights.append(Light(centre, *edges, power, normal=turn @ np.array([0, -1.0, 0])))
        if look.random() < 0.5 and not any(light.distant for light in self.lights):
            slope, side = look.uniform(0.35, 0.9), look.uniform(-0.8, 0.8)
            towards = turn @ np.array([np.sin(side) * np.cos(slope), np.cos(side) * np.cos(slope), np.sin(slope)])
            colour = np.array([1.15, 1.0, 0.82]) ** look.uniform(0.3, 1.8)
            blur = look.uniform(0.01, 0.05)
            across = np.cross(towards, (0, 0, 1.0))
            up = np.cross(across, towards)
            self.lights.append(Light(towards, across * blur, up * blur, colour * look.uniform(2, 5), distant=True))

    def lamps(self) -> None:
        """Switch lamps on: at most two, and one at least when the sun does not shine in."""
        lamps = [placed for placed in self.placed if placed.thing.light]
        order = self.look.permutation(len(lamps))
        limit = max(0, 3 - len(self.lights))
        for i in order[:limit]:
            if self.lights and self.look.random() < 0.3:
                continue
            placed = lamps[i]
            centre, radius = placed.thing.light
            hangs = placed.at[2] + centre[2] > 1.9
            warm = np.array([1.12, 0.97, 0.76]) ** self.look.uniform(0.1, 1.4)
            power = warm * (self.look.uniform(2.5, 5.0) if hangs else self.look.uniform(0.5, 1.1))
            edges = np.eye(3)[:2] * 2 * radius
            down = np.array([0, 0, -1.0]) if hangs and radius > 0.24 else None
            self.lights.append(Light(placed.to_world(centre), *edges, power, normal=down))
            placed.brightness = power.mean() * (0.35 if hangs else 1.2)
        if not self.lights:
            centre = self.size * (0.5, 0.5, 1) - (0, 0, 0.1)
            self.lights.append(Light(centre, *(np.eye(3)[:2] * 0.6), np.full(3, 3.5), np.array([0, 0, -1.0])))

    def shell(self) -> None:
        """Walls with holes for the windows, floor and ceiling."""
        width, depth, height = self.size
        solid = Solid()
        solid.quad((0, 0, 0), (width, 0, 0), (0, depth, 0), "floor")
        self.put(Thing("floor", solid.triangles()), np.eye(3), np.zeros(3))
        solid = Solid()
        solid.quad((0, depth, height), (width, 0, 0), (0, -depth, 0), "ceiling")
        self.put(Thing("ceiling", solid.triangles()), np.eye(3), np.zeros(3))
        solid = Solid()
        accent = self.rng.integers(4) if self.rng.random() < 0.3 else None
        skirting = self.rng.uniform(0.06, 0.12)
        for wall in range(4):
            turn, foot, length = self.wall_frame(wall)
            slot = "accent" if wall == accent else "wall"
            for corner, edge_s, edge_t in _around(length, height, self.holes.get(wall, [])):
                solid.quad(turn @ corner + foot, turn @ edge_s, edge_t, slot, uv=(corner[0], corner[2]))
            if all(low > skirting for _, _, low, _ in self.holes.get(wall, [])):
                corner, along, inward = (
                    turn @ (-length / 2, -0.01, 0) + foot,
                    turn @ (length, 0, 0),
                    turn @ (0, 0.01, 0),
                )
                solid.quad(corner, along, (0, 0, skirting), "skirting")
                solid.quad(corner + (0, 0, skirting), along, inward, "skirting")
        self.put(Thing("wall", solid.triangles()), np.eye(3), np.zeros(3))

    # ------------------------------------------------------------------------------------------- to arrays

    def scene(self) -> Scene:
        """Paint everything and flatten it."""
        painter = Painter(self.look)
        columns, kinds, shapes, parts, patches = [], [], [], [""], 0
        for index, placed in enumerate(self.placed):
            shape = placed.thing.shape
            materials = np.array([_material(painter, placed, slot) for slot in shape.slots])
            for name in shape.parts:
                if name not in parts:
                    parts.append(name)
            columns.append(
                (
                    shape.vertex_T33 @ placed.turn.T + placed.at,
                    shape.normal_T33 @ placed.turn.T,
                    shape.uv_T32,
                    materials[shape.slot_T],
                    np.full(len(shape.slot_T), index),
                    np.array([parts.index(name) for name in shape.parts])[shape.part_T],
                    shape.patch_T + patches,
                    np.array([slot not in _THROUGH for slot in shape.slots])[shape.slot_T],
                )
            )
            patches += shape.patches
            kinds.append(placed.thing.kind)
            shapes.append(shape.vertex_T33)
        arrays = [np.concatenate(column) for column in zip(*columns, strict=True)]
        return Scene(*arrays, kinds, parts, shapes, painter.finish(), self.lights, self.size)


def _around(
    length: float, height: float, holes: list[tuple[float, float, float, float]]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Quads (corner, edge, edge) that fill a wall around rectangular holes, in the wall's frame."""
    edges = sorted({-length / 2, length / 2, *(m + s * w / 2 for m, w, _, _ in holes for s in (-1, 1))})
    for left, right in pairwise(edges):
        hole = next((h for h in holes if h[0] - h[1] / 2 <= (left + right) / 2 <= h[0] + h[1] / 2), None)
        spans = [(0, height)] if hole is None else [(0, hole[2]), (hole[2] + hole[3], height)]
        for low, high in spans:
            yield np.array([left, 0, low]), np.array([right - left, 0, 0]), np.array([0, 0, high - low])


def _material(painter: Painter, placed: Placed, slot: str) -> int:
    look, glow = painter.rng, placed.brightness
    extent = np.ptp(placed.thing.shape.bounds, axis=0)
    if slot in ("skin", "hair", "lips", "eyes"):
        return painter.warm()
    if slot == "art":
        return painter.picture(extent[[0, 2]])
    if slot == "screen":
        return painter.picture(extent[[0, 2]], emission=look.choice((0.0, look.uniform(0.4, 1.5))))
    if slot == "mirror":
        return painter.mirror()
    if slot == "pane":
        return painter.sky(extent[2], 0.5 * glow)  # as seen; a camera would have to choose
    return painter.any(emission=glow if slot == "shade" else 0.0, may_shine=slot in _SHINY)
