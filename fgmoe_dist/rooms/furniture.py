"""Parametric furniture: `make(name, rng)` draws one piece.

A piece stands in a frame of its own: its floor print is centred on the origin, its front looks along -y, its back is
towards +y, z is up, metres. What hangs on walls has its back at y = 0 and says at which height it hangs. Every
generator draws its proportions from the stream it is given, so no two pieces are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fgmoe_dist.rooms.geometry import Solid, Triangles, rotation


@dataclass
class Thing:
    """One piece: its class (of `labels`), its triangles, and where others may stand or sit on it."""

    kind: str
    shape: Triangles
    tops: list = field(default_factory=list)  # (x0, x1, y0, y1, z): free surfaces
    seats: list = field(default_factory=list)  # (x, y, z): where a person sits, looking along -y
    children: list = field(default_factory=list)  # (Thing, (x, y, z), yaw)
    light: tuple | None = None  # (centre, radius) of a lamp's bulb


Maker = Callable[..., Thing]
_MAKERS: dict[str, Maker] = {}


def _maker(function: Maker) -> Maker:
    _MAKERS[function.__name__.strip("_")] = function
    return function


def names() -> list[str]:
    """All that `make` can make."""
    return sorted(_MAKERS)


def make(name: str, rng: np.random.Generator, **options) -> Thing:
    """A new piece of that name; options are the generator's own (a `width` to fit a wall, a `height` of the room)."""
    return _MAKERS[name](rng, **options)


def _finish(kind: str, solid: Solid, **extra) -> Thing:
    return Thing(kind, solid.triangles(), **extra)


def _legs(
    solid: Solid,
    width: float,
    depth: float,
    height: float,
    thickness: float,
    rng: np.random.Generator,
    slot: str = "legs",
) -> None:
    """Four legs, square or round or splayed, under a rectangle."""
    style = rng.integers(3)
    for x in (-1, 1):
        for y in (-1, 1):
            cx, cy = x * (width / 2 - thickness), y * (depth / 2 - thickness)
            if style == 0:
                half = thickness / 2
                solid.box((cx - half, cy - half, 0), (cx + half, cy + half, height), slot)
            else:
                splay = 0.08 * (style - 1)
                foot = (cx + x * splay, cy + y * splay, thickness / 3)
                solid.tube(foot, (cx, cy, height - thickness / 2), thickness / 3, slot, end_radius=thickness / 2)


def _fronts(
    solid: Solid,
    width: float,
    height: float,
    y: float,
    rows: int,
    columns: int,
    rng: np.random.Generator,
    bottom: float = 0.0,
    middle: float = 0.0,
) -> None:
    """Drawer or door fronts standing proud of a carcass whose front is at `y`."""
    gap, proud = 0.012, rng.uniform(0.012, 0.025)
    cell_w, cell_h = width / columns, height / rows
    for row in range(rows):
        for column in range(columns):
            x, z = middle - width / 2 + column * cell_w, bottom + row * cell_h
            solid.box((x + gap, y - proud, z + gap), (x + cell_w - gap, y, z + cell_h - gap), "front")
            side = 0.5 if cell_w > cell_h else (0.85 if column % 2 == 0 else 0.15)
            centre = (x + side * cell_w, y - proud - 0.015, z + 0.55 * cell_h)
            solid.ball(centre, (0.015, 0.015, 0.015), "knob", sides=6)


# ------------------------------------------------------------------------------------------------- seats and beds


@_maker
def _chair(rng: np.random.Generator, sitter: bool = False) -> Thing:
    solid = Solid()
    width, depth, seat = rng.uniform(0.4, 0.54), rng.uniform(0.4, 0.52), rng.uniform(0.42, 0.5)
    back, lean = rng.uniform(0.38, 0.62), rng.uniform(0.0, 0.1)
    soft = rng.random() < 0.5
    low, high = (-width / 2, -depth / 2, seat - rng.uniform(0.04, 0.09)), (width / 2, depth / 2, seat)
    if rng.random() < 0.22:  # office chair
        solid.cylinder((0, 0, 0.08), 0.03, low[2] - 0.08, "legs", sides=8)
        for angle in np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 6):
            foot = (0.28 * np.cos(angle), 0.28 * np.sin(angle), 0.05)
            solid.tube((0, 0, 0.1), foot, 0.025, "legs")
            solid.ball((foot[0], foot[1], 0.03), (0.03, 0.03, 0.03), "legs", sides=6)
        soft = True
    else:
        _legs(solid, width, depth, low[2], rng.uniform(0.03, 0.055), rng)
    (solid.cushion if soft else solid.box)(low, high, "seat")
    y = depth / 2 - 0.02
    top = seat + back
    style = rng.integers(3)
    if style == 0:
        low, high = (-width / 2, y - 0.03 + lean, seat + 0.08), (width / 2, y + 0.03 + lean, top)
        (solid.cushion if soft else solid.box)(low, high, "back")
    posts = (-width / 2 + 0.02, width / 2 - 0.02) if style < 2 else np.linspace(-width / 2 + 0.02, width / 2 - 0.02, 5)
    for x in posts:
        solid.tube((x, y, seat - 0.02), (x, y + lean, top - 0.02), 0.017, "legs", sides=6)
    if style:
        for z in (top - 0.06,) if style == 2 else np.linspace(seat + 0.15, top - 0.06, 3):
            shift = y + lean * (z - seat) / back
            solid.box((-width / 2, shift - 0.015, z), (width / 2, shift + 0.015, z + 0.06), "back")
    if rng.random() < 0.25 and not sitter:
        for x in (-width / 2, width / 2):
            solid.tube((x, -depth / 2 + 0.04, seat - 0.03), (x, -depth / 2 + 0.06, seat + 0.2), 0.018, "legs", sides=6)
            solid.tube((x, -depth / 2 + 0.04, seat + 0.21), (x, y, seat + 0.23), 0.022, "legs", sides=6)
    return _finish("chair", solid, seats=[(0, 0.02, seat)])


@_maker
def _sofa(rng: np.random.Generator, width: float | None = None) -> Thing:
    solid = Solid()
    width = rng.uniform(1.5, 2.3) if width is None else width
    depth, seat = rng.uniform(0.8, 1.0), rng.uniform(0.38, 0.46)
    back, arm, arm_width = rng.uniform(0.75, 0.95), rng.uniform(0.52, 0.66), rng.uniform(0.12, 0.24)
    foot = rng.uniform(0.04, 0.14)
    _legs(solid, width, depth, foot + 0.03, 0.06, rng)
    solid.cushion((-width / 2, -depth / 2, foot), (width / 2, depth / 2, seat - 0.1), "body", power=12)
    solid.cushion((-width / 2, depth / 2 - 0.24, foot), (width / 2, depth / 2, back), "body", power=8)
    for x in (-1, 1):
        inner, outer = sorted((x * width / 2, x * (width / 2 - arm_width)))
        solid.cushion((inner, -depth / 2 - 0.02, foot), (outer, depth / 2 - 0.05, arm), "body", power=7)
    count = max(1, round((width - 2 * arm_width) / 0.68))
    edges = np.linspace(-width / 2 + arm_width, width / 2 - arm_width, count + 1)
    for left, right in pairwise(edges):
        solid.cushion((left, -depth / 2 - 0.01, seat - 0.16), (right, depth / 2 - 0.2, seat), "seat", power=7)
        solid.cushion((left, depth / 2 - 0.36, seat - 0.05), (right, depth / 2 - 0.12, back + 0.03), "seat", power=5)
    thing = _finish("sofa", solid, seats=[((a + b) / 2, -0.12, seat) for a, b in pairwise(edges)])
    for x in (edges[0] + 0.22, edges[-1] - 0.22):
        if rng.random() < 0.5:
            place = (x, depth / 2 - 0.5, seat + 0.01)
            thing.children.append((make("pillow", rng, standing=True), place, rng.normal(0, 0.3)))
    return thing


@_maker
def _armchair(rng: np.random.Generator) -> Thing:
    thing = make("sofa", rng, width=rng.uniform(0.8, 1.0))
    thing.kind = "armchair"
    return thing


@_maker
def _stool(rng: np.random.Generator) -> Thing:
    solid = Solid()
    width, depth, height = rng.uniform(0.34, 0.8), rng.uniform(0.34, 0.5), rng.uniform(0.36, 0.5)
    _legs(solid, width, depth, height - 0.1, 0.05, rng)
    solid.cushion((-width / 2, -depth / 2, height - 0.14), (width / 2, depth / 2, height), "seat", power=6)
    return _finish("stool", solid, seats=[(0, 0, height)])


@_maker
def _bed(rng: np.random.Generator) -> Thing:
    solid = Solid()
    width, length, frame = rng.uniform(1.0, 1.9), rng.uniform(1.9, 2.15), rng.uniform(0.2, 0.34)
    thick, head = rng.uniform(0.16, 0.26), rng.uniform(0.75, 1.25)
    front, back = -length / 2, length / 2
    _legs(solid, width, length, frame - 0.1, 0.08, rng)
    solid.box((-width / 2, front, frame - 0.12), (width / 2, back, frame), "frame")
    solid.box((-width / 2 - 0.03, back, 0.0), (width / 2 + 0.03, back + 0.06, head), "frame")
    if rng.random() < 0.4:
        solid.box((-width / 2, front - 0.05, 0), (width / 2, front, frame + rng.uniform(0.1, 0.4)), "frame")
    top = frame + thick
    solid.cushion((-width / 2 + 0.02, front + 0.02, frame), (width / 2 - 0.02, back - 0.01, top), "sheet", power=14)
    fold = rng.uniform(0.3, 0.8)  # the blanket: over the mattress and a little down its sides
    low = (-width / 2 - 0.02, front - 0.015, frame - rng.uniform(0.0, 0.12))
    solid.cushion(low, (width / 2 + 0.02, back - fold, top + rng.uniform(0.03, 0.09)), "blanket", power=11)
    thing = _finish("bed", solid, tops=[(-width / 3, width / 3, front + 0.3, 0.0, top + 0.06)])
    count = 1 if width < 1.3 else 2
    for x in (np.arange(count) - (count - 1) / 2) * width / 2:
        thing.children.append((make("pillow", rng), (x, back - 0.28, top - 0.01), rng.normal(0, 0.1)))
    return thing


@_maker
def _pillow(rng: np.random.Generator, standing: bool = False) -> Thing:
    solid = Solid()
    width, depth, height = rng.uniform(0.38, 0.62), rng.uniform(0.32, 0.44), rng.uniform(0.11, 0.17)
    if standing:
        turn = rotation("x", -rng.uniform(0.15, 0.4))
        width = depth * rng.uniform(0.95, 1.15)
        solid.cushion((-width / 2, -height / 2, 0), (width / 2, height / 2, depth), "cloth", power=2.8, turn=turn)
    else:
        solid.cushion((-width / 2, -depth / 2, 0), (width / 2, depth / 2, height), "cloth", power=2.8)
    return _finish("pillow", solid)


# ------------------------------------------------------------------------------------------------- tables and cases


def _table_like(
    kind: str, rng: np.random.Generator, width: float, depth: float, height: float, thickness: float
) -> tuple[Solid, tuple[float, float, float, float, float]]:
    solid = Solid()
    solid.box((-width / 2, -depth / 2, height - thickness), (width / 2, depth / 2, height), "top")
    leg = rng.uniform(0.045, 0.09)
    inset = 2 * rng.uniform(0.01, 0.06)
    _legs(solid, width - inset, depth - inset, height - thickness, leg, rng)
    if rng.random() < 0.5:
        half_w, half_d = width / 2 - inset / 2 - leg, depth / 2 - inset / 2 - leg
        solid.box((-half_w, -half_d, height - thickness - 0.09), (half_w, half_d, height - thickness), "legs")
    return solid, (-width / 2 + 0.05, width / 2 - 0.05, -depth / 2 + 0.05, depth / 2 - 0.05, height)


@_maker
def _table(rng: np.random.Generator, low: bool = False) -> Thing:
    height = rng.uniform(0.36, 0.5) if low else rng.uniform(0.7, 0.78)
    thickness = rng.uniform(0.02, 0.06)
    if rng.random() < 0.3:
        solid, radius = Solid(), rng.uniform(0.4, 0.65)
        solid.cylinder((0, 0, height - thickness), radius, thickness, "top", sides=32)
        solid.cylinder((0, 0, 0), radius * 0.55, 0.03, "legs", sides=20)
        waist = rng.uniform(0.03, 0.07)
        profile = [(radius * 0.3, 0.03), (waist * 1.3, 0.1), (waist, height / 2), (waist * 1.6, height - thickness)]
        solid.lathe(profile, "legs")
        half = radius * 0.6
        return _finish("table", solid, tops=[(-half, half, -half, half, height)])
    width, depth = rng.uniform(0.8, 1.2 if low else 1.8), rng.uniform(0.5, 0.7) if low else rng.uniform(0.7, 0.95)
    solid, top = _table_like("table", rng, width, depth, height, thickness)
    return _finish("table", solid, tops=[top])


@_maker
def _desk(rng: np.random.Generator) -> Thing:
    width, depth, height = rng.uniform(1.0, 1.6), rng.uniform(0.55, 0.75), rng.uniform(0.7, 0.77)
    solid, top = _table_like("desk", rng, width, depth, height, rng.uniform(0.02, 0.05))
    case = rng.uniform(0.34, 0.44)
    for side in (-1, 1) if rng.random() < 0.4 else (rng.choice((-1, 1)),):
        x = side * (width / 2 - case / 2 - 0.1)
        solid.box((x - case / 2, -depth / 2 + 0.05, 0.04), (x + case / 2, depth / 2 - 0.03, height - 0.1), "case")
        _fronts(solid, case, height - 0.14, -depth / 2 + 0.05, rng.integers(2, 5), 1, rng, bottom=0.04, middle=x)
    return _finish("desk", solid, tops=[top])


def _case(
    kind: str, rng: np.random.Generator, width: float, depth: float, height: float, rows: int, columns: int
) -> Thing:
    """A closed carcass with fronts: cabinet, dresser, night-stand, counter, refrigerator."""
    solid = Solid()
    foot = rng.uniform(0.02, 0.14)
    half_w, half_d = width / 2, depth / 2
    if foot > 0.07:
        _legs(solid, width, depth, foot, 0.05, rng)
    else:
        solid.box((-half_w + 0.03, -half_d + 0.05, 0), (half_w - 0.03, half_d, foot), "foot")
    solid.box((-half_w, -half_d, foot), (half_w, half_d, height - 0.02), "case")
    over = rng.uniform(0.0, 0.03)
    solid.box((-half_w - over, -half_d - over - 0.02, height - 0.02), (half_w + over, half_d, height), "top")
    _fronts(solid, width, height - foot - 0.02, -half_d, rows, columns, rng, bottom=foot)
    top = (-half_w + 0.06, half_w - 0.06, -half_d + 0.05, half_d - 0.05, height)
    return _finish(kind, solid, tops=[top])


@_maker
def _cabinet(rng: np.random.Generator) -> Thing:
    tall = rng.random() < 0.5
    height = rng.uniform(1.6, 2.1) if tall else rng.uniform(0.8, 1.2)
    width = rng.uniform(0.7, 1.5)
    return _case("cabinet", rng, width, rng.uniform(0.36, 0.6), height, 1 + (not tall) * rng.integers(0, 2), 2)


@_maker
def _hung_cabinet(rng: np.random.Generator) -> Thing:
    solid, width, height, depth = Solid(), rng.uniform(0.8, 1.8), rng.uniform(0.5, 0.7), rng.uniform(0.28, 0.36)
    low = rng.uniform(1.4, 1.55)
    solid.box((-width / 2, -depth, low), (width / 2, 0, low + height), "case")
    _fronts(solid, width, height, -depth, 1, max(2, int(width / 0.42)), rng, bottom=low)
    return _finish("cabinet", solid)


@_maker
def _dresser(rng: np.random.Generator) -> Thing:
    size = rng.uniform(0.8, 1.5), rng.uniform(0.4, 0.52), rng.uniform(0.75, 1.1)
    return _case("dresser", rng, *size, rng.integers(3, 5), rng.integers(1, 3))


@_maker
def _night_stand(rng: np.random.Generator) -> Thing:
    size = rng.uniform(0.38, 0.55), rng.uniform(0.34, 0.44), rng.uniform(0.42, 0.64)
    return _case("night-stand", rng, *size, rng.integers(1, 4), 1)


@_maker
def _refrigerator(rng: np.random.Generator) -> Thing:
    size = rng.uniform(0.6, 0.85), rng.uniform(0.6, 0.7), rng.uniform(1.5, 1.9)
    thing = _case("refrigerator", rng, *size, 2, 1)
    return thing


@_maker
def _counter(rng: np.random.Generator, sink: bool = True) -> Thing:
    width, depth, height = rng.uniform(1.5, 2.6), rng.uniform(0.58, 0.66), rng.uniform(0.86, 0.94)
    thing = _case("counter", rng, width, depth, height, 1, max(3, int(width / 0.5)))
    if sink:
        thing.children.append((make("basin", rng), (rng.uniform(-0.3, 0.3) * width, -0.02, height), 0.0))
    return thing


@_maker
def _basin(rng: np.random.Generator) -> Thing:
    """A sink set on a counter: a rim, a shallow bowl, a tap."""
    solid, width, depth = Solid(), rng.uniform(0.42, 0.6), rng.uniform(0.34, 0.42)
    rim = 0.035
    for low, high in (
        ((-width / 2, -depth / 2), (width / 2, -depth / 2 + rim)),
        ((-width / 2, depth / 2 - rim), (width / 2, depth / 2)),
        ((-width / 2, -depth / 2 + rim), (-width / 2 + rim, depth / 2 - rim)),
        ((width / 2 - rim, -depth / 2 + rim), (width / 2, depth / 2 - rim)),
    ):
        solid.box((*low, 0), (*high, 0.04), "bowl")
    solid.box((-width / 2 + rim, -depth / 2 + rim, 0), (width / 2 - rim, depth / 2 - rim, 0.008), "bowl")
    solid.tube((0, depth / 2 - 0.02, 0.04), (0, depth / 2 - 0.02, 0.26), 0.014, "tap", sides=6)
    solid.tube((0, depth / 2 - 0.02, 0.26), (0, depth / 2 - 0.17, 0.24), 0.012, "tap", sides=6)
    return _finish("sink", solid)


@_maker
def _bookshelf(rng: np.random.Generator, books: bool = True) -> Thing:
    solid = Solid()
    width, depth, height = rng.uniform(0.7, 1.4), rng.uniform(0.26, 0.36), rng.uniform(1.2, 2.1)
    board, rows = rng.uniform(0.02, 0.035), rng.integers(3, 6)
    half = width / 2
    solid.box((-half, -depth / 2, 0), (-half + board, depth / 2, height), "board")
    solid.box((half - board, -depth / 2, 0), (half, depth / 2, height), "board")
    solid.box((-half + board, depth / 2 - 0.012, 0.05), (half - board, depth / 2 - 0.002, height - 0.01), "rear")
    levels = np.linspace(0.06, height - board, rows + 1)
    for z in levels:
        solid.box((-half + board, -depth / 2, z), (half - board, depth / 2 - 0.012, z + board), "board")
    thing = _finish("bookshelf" if books else "shelves", solid)
    for z, above in pairwise(levels):
        room = (-half + board + 0.01, half - board - 0.01, above - z - board)
        if books and rng.random() < 0.85:
            row = make(
                "books", rng, width=(room[1] - room[0]) * rng.uniform(0.5, 1.0), height=room[2], depth=depth - 0.05
            )
            thing.children.append((row, (0, 0, z + board), 0.0))
        elif not books or rng.random() < 0.5:
            name = rng.choice(("vase", "box", "bottle"))
            item = make(name, rng, height=room[2] * rng.uniform(0.5, 0.85))
            thing.children.append((item, (rng.uniform(-0.25, 0.25) * width, 0, z + board), 0.0))
    return thing


@_maker
def _shelves(rng: np.random.Generator) -> Thing:
    return make("bookshelf", rng, books=False)


@_maker
def _hung_shelf(rng: np.random.Generator) -> Thing:
    solid, width, depth, z = Solid(), rng.uniform(0.6, 1.2), rng.uniform(0.18, 0.26), rng.uniform(1.25, 1.6)
    solid.box((-width / 2, -depth, z), (width / 2, 0, z + 0.03), "board")
    for x in (-width * 0.35, width * 0.35):
        solid.box((x - 0.015, -depth * 0.7, z - 0.12), (x + 0.015, 0, z), "bracket")
    thing = _finish("shelves", solid)
    row = make("books", rng, width=width * rng.uniform(0.3, 0.6), height=0.32, depth=depth - 0.03)
    thing.children.append((row, (rng.uniform(-0.15, 0.15) * width, -depth / 2, z + 0.03), 0.0))
    return thing


# ------------------------------------------------------------------------------------------------- small things


@_maker
def _books(rng: np.random.Generator, width: float | None = None, height: float = 0.36, depth: float = 0.2) -> Thing:
    """A standing row when given a width, else a lying pile."""
    solid = Solid()
    if width is None:
        z, long, wide = 0.0, rng.uniform(0.2, 0.3), rng.uniform(0.14, 0.22)
        for i in range(rng.integers(2, 6)):
            thick, shift = rng.uniform(0.015, 0.045), rng.uniform(-0.02, 0.02, 2)
            low = (shift[0] - long / 2, shift[1] - wide / 2, z)
            solid.box(low, (low[0] + long, low[1] + wide, z + thick), f"cover{i % 3}")
            z += thick
        return _finish("books", solid)
    x = -width / 2
    tall = min(height * 0.9, 0.33)
    while True:
        thick = rng.uniform(0.018, 0.055)
        if x + thick > width / 2:
            break
        top, deep = tall * rng.uniform(0.65, 1.0), min(depth, 0.24) * rng.uniform(0.7, 0.95)
        solid.box((x + 0.001, -deep / 2, 0), (x + thick - 0.001, deep / 2, top), f"cover{rng.integers(5)}")
        x += thick
    if not solid.pieces:
        solid.box((-0.02, -0.08, 0), (0.02, 0.08, tall), "cover0")
    return _finish("books", solid)


@_maker
def _box(rng: np.random.Generator, height: float | None = None) -> Thing:
    solid = Solid()
    height = rng.uniform(0.18, 0.42) if height is None else height
    width, depth = height * rng.uniform(0.8, 1.6), height * rng.uniform(0.7, 1.2)
    half_w, half_d = width / 2, min(depth, 0.5) / 2
    if rng.random() < 0.4:  # open, with flaps
        wall = 0.01
        solid.box((-half_w, -half_d, 0), (half_w, half_d, 0.01), "card")
        for low, high in (
            ((-half_w, -half_d), (half_w, -half_d + wall)),
            ((-half_w, half_d - wall), (half_w, half_d)),
            ((-half_w, -half_d + wall), (-half_w + wall, half_d - wall)),
            ((half_w - wall, -half_d + wall), (half_w, half_d - wall)),
        ):
            solid.box((*low, 0.01), (*high, height), "card")
        for side in (-1, 1):
            edge = (side * half_w, side * -half_d, height)
            solid.quad(edge, (0, side * 2 * half_d, 0), (side * 0.12, 0, rng.uniform(-0.03, 0.1)), "card")
    else:
        solid.box((-half_w, -half_d, 0), (half_w, half_d, height * 0.85), "card")
        solid.box((-half_w - 0.006, -half_d - 0.006, height * 0.85), (half_w + 0.006, half_d + 0.006, height), "lid")
    return _finish("box", solid)


@_maker
def _bag(rng: np.random.Generator) -> Thing:
    solid = Solid()
    width, depth, height = rng.uniform(0.28, 0.46), rng.uniform(0.14, 0.24), rng.uniform(0.26, 0.46)
    solid.cushion((-width / 2, -depth / 2, 0), (width / 2, depth / 2, height), "cloth", power=rng.uniform(3, 6))
    solid.cushion((-width / 3, -depth * 0.68, 0.03), (width / 3, -depth * 0.3, height * 0.55), "pocket", power=4)
    bend = np.linspace(0, np.pi, 7)
    arch = np.stack([np.cos(bend) * width * 0.25, bend * 0, height * 0.95 + np.sin(bend) * 0.14], -1)
    for start, end in pairwise(arch):
        solid.tube(start, end, 0.014, "strap", sides=6)
    return _finish("bag", solid)


@_maker
def _lamp(rng: np.random.Generator, floor: bool = False) -> Thing:
    solid = Solid()
    height = rng.uniform(1.35, 1.75) if floor else rng.uniform(0.38, 0.6)
    shade, radius = (0.32 if floor else 0.2) * rng.uniform(0.8, 1.2), (0.22 if floor else 0.15) * rng.uniform(0.8, 1.2)
    neck = height - shade
    if floor:
        solid.cylinder((0, 0, 0), 0.15, 0.03, "stand", sides=16)
        solid.cylinder((0, 0, 0.03), 0.014, neck - 0.03 + shade * 0.4, "stand", sides=8)
    else:
        waist = rng.uniform(0.02, 0.09)
        solid.lathe(
            [(1e-3, 0), (0.08, 0.0), (0.07, 0.02), (waist, neck * 0.6), (0.012, neck), (0.012, height)], "stand"
        )
    taper = rng.uniform(0.5, 1.0)
    solid.lathe([(radius, neck), (radius * taper, height)], "shade", sides=20)
    solid.lathe([(radius * taper, height), (1e-3, height - 0.004)], "shade", sides=20)
    return _finish("lamp", solid, light=((0, 0, neck + shade * 0.4), radius * 0.5))


@_maker
def _ceiling_lamp(rng: np.random.Generator, height: float) -> Thing:
    """Hangs from z = height; its light shines downwards from just below it."""
    solid = Solid()
    drop = rng.choice((0.05, rng.uniform(0.3, 0.7)))
    radius = rng.uniform(0.15, 0.3)
    if drop > 0.1:
        solid.cylinder((0, 0, height - drop + 0.1), 0.008, drop - 0.1, "cord", sides=6)
    profile = [(radius, 0), (radius * rng.uniform(0.6, 0.98), 0.06), (0.03, 0.13)]
    solid.lathe(profile, "shade", at=(0, 0, height - max(drop, 0.13)), sides=20)
    solid.lathe([(1e-3, 0), (radius, 0)], "shade", at=(0, 0, height - max(drop, 0.13)), sides=20)
    return _finish("lamp", solid, light=((0, 0, height - max(drop, 0.13) - 0.03), radius))


@_maker
def _bottle(rng: np.random.Generator, height: float | None = None) -> Thing:
    solid = Solid()
    tall = rng.uniform(0.2, 0.34) if height is None else min(height, 0.34)
    body, neck, shoulder = tall * rng.uniform(0.11, 0.17), tall * rng.uniform(0.035, 0.055), rng.uniform(0.5, 0.7)
    profile = [(1e-3, 0), (body, 0.004), (body, shoulder * tall), (neck, (shoulder + 0.18) * tall), (neck, tall * 0.93)]
    solid.lathe(profile, "glass")
    solid.cylinder((0, 0, tall * 0.93), neck * 1.15, tall * 0.07, "cap", sides=8)
    return _finish("bottle", solid)


@_maker
def _vase(rng: np.random.Generator, height: float | None = None) -> Thing:
    solid = Solid()
    tall = rng.uniform(0.15, 0.35) if height is None else height
    radii = tall * rng.uniform(0.15, 0.4, 5)
    profile = np.stack([radii, np.linspace(0, tall, 5)], -1)
    solid.lathe(np.concatenate([[(1e-3, 0)], profile, [(radii[-1] * 0.8, tall * 0.98), (1e-3, tall * 0.7)]]), "clay")
    return _finish("vase", solid)


@_maker
def _plant(rng: np.random.Generator, small: bool | None = None) -> Thing:
    solid = Solid()
    small = rng.random() < 0.5 if small is None else small
    size = rng.uniform(0.28, 0.45) if small else rng.uniform(0.8, 1.5)
    pot, wide = size * rng.uniform(0.25, 0.36), size * rng.uniform(0.14, 0.2)
    base = wide * rng.uniform(0.6, 1)
    solid.lathe([(1e-3, 0), (base, 0.002), (wide, pot), (wide * 0.88, pot), (1e-3, pot * 0.9)], "pot", sides=16)
    long, broad = (size - pot) * rng.uniform(0.8, 1.0), rng.uniform(0.05, 0.14)
    for i in range(rng.integers(9, 20)):
        lift, length = rng.uniform(0.35, 1.0), long * rng.uniform(0.6, 1.0)
        along = np.linspace(0, 1, 6)[:, None]
        reach = length * along * np.cos(lift * 1.4)
        rise = length * (along * np.sin(lift * 1.5) - 0.35 * along**2 * (1.2 - lift))
        half = broad * length * np.sin(np.pi * (0.06 + 0.9 * along)) * np.array([[-1, 0, 1]])
        sag = -0.25 * np.abs(half)
        leaf = np.stack(np.broadcast_arrays(reach, half, pot * 0.92 + rise + sag), -1)
        normal = np.cross(np.gradient(leaf, axis=0), np.gradient(leaf, axis=1))
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        turn = rotation("z", i * 2.4 + rng.uniform(-0.4, 0.4)).T
        solid.grid(leaf @ turn, normal @ turn, f"leaf{i % 2}")
    return _finish("plant", solid)


@_maker
def _paper(rng: np.random.Generator) -> Thing:
    solid = Solid()
    for i in range(rng.integers(1, 5)):
        turn, at = rotation("z", rng.uniform(-0.5, 0.5)), rng.uniform(-0.06, 0.06, 2)
        edge_s, edge_t = turn @ (0.21, 0, 0), turn @ (0, 0.297, 0)
        solid.quad(np.array([*at, 0.002 + 0.0015 * i]) - (edge_s + edge_t) / 2, edge_s, edge_t, "sheet")
    return _finish("paper", solid)


@_maker
def _clothes(rng: np.random.Generator) -> Thing:
    """A heap of cloth."""
    solid, size = Solid(), rng.uniform(0.2, 0.4)
    for i in range(3):
        x, y = rng.uniform(-0.5, 0.5, 2) * size * 0.7
        half = size * rng.uniform(0.35, 0.6, 2)
        turn = rotation("z", rng.uniform(0, 3)) @ rotation("x", rng.normal(0, 0.12))
        low, high = (x - half[0], y - half[1], -0.03), (x + half[0], y + half[1], 0.05 + 0.03 * i)
        solid.cushion(low, high, f"cloth{i}", power=rng.uniform(2.2, 3), turn=turn)
    return _finish("clothes", solid)


@_maker
def _floor_mat(rng: np.random.Generator) -> Thing:
    solid, width, depth = Solid(), rng.uniform(0.9, 2.4), rng.uniform(0.6, 1.7)
    if rng.random() < 0.3:
        solid.cylinder((0, 0, 0), depth / 2, 0.012, "pile", sides=40)
    else:
        solid.box((-width / 2, -depth / 2, 0), (width / 2, depth / 2, 0.012), "pile")
        border = rng.uniform(0.04, 0.15)
        low, high = (-width / 2 + border, -depth / 2 + border, 0.012), (width / 2 - border, depth / 2 - border, 0.014)
        solid.box(low, high, "field")
    return _finish("floor-mat", solid)


@_maker
def _television(rng: np.random.Generator) -> Thing:
    solid, width = Solid(), rng.uniform(0.5, 1.25)
    height = width * rng.uniform(0.56, 0.64)
    foot = rng.uniform(0.05, 0.1)
    if width < 0.8:
        solid.box((-0.04, -0.02, 0.015), (0.04, 0.02, foot + 0.05), "frame")
        solid.box((-0.13, -0.1, 0), (0.13, 0.09, 0.015), "frame")
    else:
        for x in (-0.35, 0.35):
            solid.box((x * width - 0.02, -0.1, 0), (x * width + 0.02, 0.1, foot), "frame")
    solid.box((-width / 2, -0.03, foot), (width / 2, 0.03, foot + height), "frame")
    rim = 0.02
    corner = (-width / 2 + rim, -0.0315, foot + rim)
    solid.quad(corner, (width - 2 * rim, 0, 0), (0, 0, height - 2 * rim), "screen")
    return _finish("television", solid)


# ------------------------------------------------------------------------------------------------- on walls


def _framed(
    kind: str, rng: np.random.Generator, width: float, height: float, low: float, inside: str, rim: float, depth: float
) -> Thing:
    solid = Solid()
    solid.box((-width / 2, -depth, low), (width / 2, -0.002, low + height), "frame")
    corner = (-width / 2 + rim, -depth - 0.0015, low + rim)
    solid.quad(corner, (width - 2 * rim, 0, 0), (0, 0, height - 2 * rim), inside)
    return _finish(kind, solid)


@_maker
def _picture(rng: np.random.Generator) -> Thing:
    width, height = rng.uniform(0.3, 1.1), rng.uniform(0.3, 0.8)
    low = rng.uniform(1.45, 1.7) - height / 2
    return _framed("picture", rng, width, height, low, "art", rng.uniform(0.015, 0.07), rng.uniform(0.015, 0.04))


@_maker
def _mirror(rng: np.random.Generator) -> Thing:
    width, height = rng.uniform(0.4, 0.9), rng.uniform(0.6, 1.2)
    low = max(0.15, rng.uniform(1.4, 1.6) - height / 2)
    return _framed("mirror", rng, width, height, low, "mirror", rng.uniform(0.015, 0.06), rng.uniform(0.015, 0.04))


@_maker
def _whiteboard(rng: np.random.Generator) -> Thing:
    width, height = rng.uniform(1.2, 2.2), rng.uniform(0.8, 1.2)
    return _framed("whiteboard", rng, width, height, rng.uniform(0.85, 1.0), "board", 0.025, 0.03)


@_maker
def _door(rng: np.random.Generator) -> Thing:
    solid, width, height = Solid(), rng.uniform(0.8, 0.95), rng.uniform(1.98, 2.12)
    rim, proud = rng.uniform(0.06, 0.11), 0.03
    half = width / 2
    solid.box((-half - rim, -proud, 0), (-half, 0, height + rim), "frame")
    solid.box((half, -proud, 0), (half + rim, 0, height + rim), "frame")
    solid.box((-half, -proud, height), (half, 0, height + rim), "frame")
    solid.box((-half, -0.012, 0), (half, 0, height), "leaf")
    rows = rng.integers(0, 4)
    edges = np.linspace(0.12, height - 0.1, rows + 1)
    for low, high in pairwise(edges):
        solid.box((-half + 0.12, -0.022, low + 0.05), (half - 0.12, -0.012, high - 0.05), "panel")
    x = rng.choice((-1, 1)) * (half - 0.07)
    solid.ball((x, -0.05, 1.02), (0.028, 0.035, 0.028), "knob", sides=8)
    return _finish("door", solid)


@_maker
def _window(rng: np.random.Generator, width: float, height: float, low: float) -> Thing:
    """Frame, bars, sill and pane in a hole of that size; the pane lies 12 cm behind the wall."""
    solid, half, rim = Solid(), width / 2, rng.uniform(0.04, 0.07)
    back, high = 0.12, low + height
    solid.quad((-half, back, low), (width, 0, 0), (0, 0, height), "pane")
    solid.box((-half, 0.05, low), (-half + rim, back - 0.01, high), "frame")
    solid.box((half - rim, 0.05, low), (half, back - 0.01, high), "frame")
    solid.box((-half + rim, 0.05, low), (half - rim, back - 0.01, low + rim), "frame")
    solid.box((-half + rim, 0.05, high - rim), (half - rim, back - 0.01, high), "frame")
    for x in np.linspace(-half, half, rng.integers(2, 5))[1:-1]:
        solid.box((x - 0.02, 0.06, low + rim), (x + 0.02, back - 0.02, high - rim), "frame")
    if rng.random() < 0.5:
        z = low + height * rng.uniform(0.4, 0.7)
        solid.box((-half + rim, 0.065, z - 0.015), (half - rim, back - 0.025, z + 0.015), "frame")
    for x in (-half, half):  # the sides of the hole
        solid.quad((x, 0, low), (0, back, 0), (0, 0, height), "reveal")
    for z in (low, high):
        solid.quad((-half, 0, z), (width, 0, 0), (0, back, 0), "reveal")
    solid.box((-half - 0.05, -0.06, low - 0.03), (half + 0.05, 0, low), "frame")
    return _finish("window", solid)


def _drape(
    solid: Solid, left: float, right: float, low: float, high: float, rng: np.random.Generator, depth: float = 0.05
) -> None:
    """A hanging cloth in folds."""
    folds = (right - left) / rng.uniform(0.09, 0.16)
    x = np.linspace(left, right, max(12, int(folds * 7)))
    phase = 2 * np.pi * folds * (x - left) / (right - left) + rng.uniform(0, 6)
    wave = np.sin(phase) + 0.4 * np.sin(0.63 * phase + 1)
    swing = np.linspace(1.0, rng.uniform(0.5, 0.9), 5)[:, None]
    point = np.stack(
        np.broadcast_arrays(x, -depth + depth * 0.6 * wave * swing, np.linspace(low, high, 5)[:, None]), -1
    )
    normal = np.cross(np.gradient(point, axis=1), np.gradient(point, axis=0))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    solid.grid(point, normal, "cloth")


@_maker
def _curtain(rng: np.random.Generator, width: float, height: float, low: float) -> Thing:
    """A pair beside a window of that size, on a rod."""
    solid, half, high = Solid(), width / 2, low + height + rng.uniform(0.08, 0.2)
    cover, out = rng.uniform(0.1, 0.3) * width, rng.uniform(0.05, 0.2)
    bottom = 0.03 if rng.random() < 0.6 else low - 0.1
    _drape(solid, -half - out, -half + cover, bottom, high, rng, 0.1)
    _drape(solid, half - cover, half + out, bottom, high, rng, 0.1)
    solid.tube((-half - out - 0.06, -0.1, high + 0.01), (half + out + 0.06, -0.1, high + 0.01), 0.014, "rod", sides=8)
    return _finish("curtain", solid)


@_maker
def _blinds(rng: np.random.Generator, width: float, height: float, low: float) -> Thing:
    solid, half, high = Solid(), width / 2 + 0.03, low + height + 0.03
    bottom = low + rng.uniform(0.2, 0.7) * height
    tilt = rng.uniform(0.2, 1.2)
    step = 0.05
    solid.box((-half, -0.08, high), (half, -0.02, high + 0.05), "slat")
    for z in np.arange(bottom, high, step):
        edge = (0, 0.045 * np.cos(tilt), 0.045 * np.sin(tilt))
        solid.quad((-half, -0.07, z), (2 * half, 0, 0), edge, "slat")
    return _finish("blinds", solid)


@_maker
def _shower_curtain(rng: np.random.Generator) -> Thing:
    solid, width = Solid(), rng.uniform(0.6, 1.1)
    _drape(solid, -width / 2, width / 2, 0.2, rng.uniform(1.85, 2.0), rng, 0.06)
    return _finish("shower-curtain", solid)


@_maker
def _towel(rng: np.random.Generator) -> Thing:
    solid, width, low = Solid(), rng.uniform(0.3, 0.6), rng.uniform(0.7, 1.0)
    high = low + rng.uniform(0.4, 0.7)
    solid.tube((-width / 2 - 0.08, -0.06, high), (width / 2 + 0.08, -0.06, high), 0.012, "rail", sides=8)
    solid.cushion((-width / 2, -0.085, low), (width / 2, -0.035, high + 0.02), "cloth", power=7)
    return _finish("towel", solid)


@_maker
def _column(rng: np.random.Generator, height: float) -> Thing:
    solid, width, depth = Solid(), rng.uniform(0.25, 0.5), rng.uniform(0.15, 0.4)
    solid.box((-width / 2, -depth / 2, 0), (width / 2, depth / 2, height - 0.001), "body")
    return _finish("column", solid)


# ------------------------------------------------------------------------------------------------- bath


@_maker
def _bathtub(rng: np.random.Generator) -> Thing:
    solid, width, depth, height = Solid(), rng.uniform(1.45, 1.75), rng.uniform(0.7, 0.82), rng.uniform(0.48, 0.6)
    rim, half_w, half_d = 0.07, width / 2, depth / 2
    solid.box((-half_w, -half_d, 0), (half_w, -half_d + rim, height), "body")
    solid.box((-half_w, half_d - rim, 0), (half_w, half_d, height), "body")
    solid.box((-half_w, -half_d + rim, 0), (-half_w + rim, half_d - rim, height), "body")
    solid.box((half_w - rim, -half_d + rim, 0), (half_w, half_d - rim, height), "body")
    solid.box((-half_w + rim, -half_d + rim, 0), (half_w - rim, half_d - rim, 0.16), "body")
    solid.tube((half_w - 0.04, 0, height), (half_w - 0.04, 0, height + 0.16), 0.015, "tap", sides=6)
    solid.tube((half_w - 0.04, 0, height + 0.16), (half_w - 0.2, 0, height + 0.14), 0.013, "tap", sides=6)
    return _finish("bathtub", solid)


@_maker
def _toilet(rng: np.random.Generator) -> Thing:
    solid, wide, seat = Solid(), rng.uniform(0.36, 0.42), rng.uniform(0.38, 0.44)
    tank = rng.uniform(0.34, 0.42)
    solid.lathe([(0.55, 0), (0.5, 0.1), (0.6, 0.2), (1, seat - 0.04), (1, seat)], "body", squash=(wide / 2, 0.26))
    solid.lathe([(1.04, seat), (1.04, seat + 0.03), (1e-3, seat + 0.035)], "lid", squash=(wide / 2, 0.27), sides=20)
    solid.box((-wide / 2 - 0.02, 0.2, seat - 0.06), (wide / 2 + 0.02, 0.38, seat + tank), "body")
    solid.box((-wide / 2 - 0.03, 0.19, seat + tank), (wide / 2 + 0.03, 0.385, seat + tank + 0.03), "lid")
    return _finish("toilet", solid)


@_maker
def _washbasin(rng: np.random.Generator) -> Thing:
    solid, wide, high = Solid(), rng.uniform(0.5, 0.7), rng.uniform(0.8, 0.9)
    profile = [(1e-3, -0.16), (0.5, -0.15), (0.9, -0.06), (1, 0), (0.88, 0.0), (0.7, -0.07), (1e-3, -0.1)]
    solid.lathe(profile, "bowl", at=(0, -0.22, high), squash=(wide / 2, 0.22), sides=20)
    solid.lathe([(0.1, 0), (0.07, 0.3), (0.1, high - 0.12)], "bowl", at=(0, -0.16, 0))
    solid.tube((0, -0.03, high - 0.02), (0, -0.03, high + 0.16), 0.014, "tap", sides=6)
    solid.tube((0, -0.03, high + 0.16), (0, -0.15, high + 0.14), 0.012, "tap", sides=6)
    return _finish("sink", solid)


# ------------------------------------------------------------------------------------------------- bicycle


@_maker
def _bicycle(rng: np.random.Generator) -> Thing:
    """Stands along x; thin, as bicycles are."""
    solid, wheel, base = Solid(), rng.uniform(0.3, 0.35), rng.uniform(0.98, 1.08)
    for x in (-base / 2, base / 2):
        angle = np.linspace(0, 2 * np.pi, 17)
        ring = np.stack([x + wheel * np.cos(angle), angle * 0, wheel + 0.02 + wheel * np.sin(angle)], -1)
        for start, end in pairwise(ring):
            solid.tube(start, end, 0.02, "tyre", sides=6)
        for spoke in ring[:-1:4]:
            solid.tube((x, 0, wheel + 0.02), spoke, 0.005, "metal", sides=4)
    hub, seat = wheel + 0.02, wheel + rng.uniform(0.45, 0.58)
    crank, head, post = (-0.05, 0, hub - 0.03), (base / 2 - 0.17, 0, seat), (-0.2, 0, seat)
    bars = ((crank, post), (crank, head), (post, head), ((-base / 2, 0, hub), crank), ((-base / 2, 0, hub), post))
    for start, end in (*bars, ((base / 2, 0, hub), head)):
        solid.tube(start, end, 0.022, "frame", sides=6)
    grip = (head[0] - 0.03, 0, seat + 0.16)
    solid.tube(head, grip, 0.018, "metal", sides=6)
    solid.tube((grip[0], -0.26, grip[2]), (grip[0], 0.26, grip[2]), 0.018, "tyre", sides=6)
    solid.tube(post, (-0.22, 0, seat + 0.1), 0.016, "metal", sides=6)
    solid.cushion((-0.36, -0.08, seat + 0.08), (-0.1, 0.08, seat + 0.15), "saddle", power=3)
    return _finish("bicycle", solid)
