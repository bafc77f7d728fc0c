"""What a kitchen, a bedroom, an office ... holds, and where: one function per kind of room.

Each furnishes a `Room` through its placing methods; what finds no space is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fgmoe_dist.rooms import people
from fgmoe_dist.rooms.furniture import make
from fgmoe_dist.rooms.geometry import rotation
from fgmoe_dist.rooms.scene import Placed, Room, Scene
from fgmoe_dist.rooms.streams import stream


def _chairs(room: Room, table: Placed, sides: Iterable[int]) -> list[Placed]:
    """Chairs drawn up to a table, looking at it; returns those that fit."""
    low, high = table.thing.shape.bounds
    ignore = [i for i, box in enumerate(room.boxes) if (box[0] <= table.at + 1e-6).all() and (table.at <= box[1]).all()]
    chairs = []
    for side in sides:
        yaw = side * np.pi / 2
        reach = (-low[1], high[0], high[1], -low[0])[side]
        turn = table.turn @ rotation("z", yaw)
        at = table.at + turn @ np.array([room.rng.normal(0, 0.06), -reach - room.rng.uniform(0.18, 0.34), 0])
        facing = np.arctan2(turn[1, 0], turn[0, 0]) + np.pi + room.rng.normal(0, 0.15)
        chairs.append(room.stand(make("chair", room.rng, sitter=True), at, facing, 0.03, ignore, tries=3))
    return [chair for chair in chairs if chair]


def _top(room: Room, base: Placed | None, names: tuple[str, ...], chance: float = 0.7) -> None:
    for name in names:
        if room.rng.random() < chance:
            options = {"small": True} if name == "plant" else {}
            room.on_top(base, make(name, room.rng, **options))


def _bedroom(room: Room) -> None:
    rng = room.rng
    bed = room.against(make("bed", rng), gap=0.02, clear=0.3)
    if bed:
        low, high = bed.thing.shape.bounds
        for side in (-1, 1):
            stand = make("night_stand", rng)
            half = stand.shape.bounds[1]
            at = bed.to_world((side * (high[0] + half[0] + 0.08), high[1] - half[1], 0))
            if stand := room.stand(stand, at, np.arctan2(bed.turn[1, 0], bed.turn[0, 0]), tries=1):
                _top(room, stand, ("lamp", "books", "bottle"), 0.6)
        _top(room, bed, ("clothes", "bag", "books"), 0.35)
        if rng.random() < 0.5:
            room.stand(make("floor_mat", rng), bed.to_world((0, low[1] - 0.4, 0)), 0.0, 0.2)
    _top(
        room,
        room.against(make("dresser", rng), gap=0.03, clear=0.4),
        ("lamp", "box", "vase", "books", "television"),
        0.5,
    )
    if rng.random() < 0.5:
        _study(room)
    for name in ("bookshelf", "cabinet", "armchair"):
        if rng.random() < 0.4:
            room.against(make(name, rng), gap=0.03, clear=0.4)
    if rng.random() < 0.5:
        room.against(make("mirror", rng))


def _study(room: Room) -> None:
    rng = room.rng
    desk = room.against(make("desk", rng), gap=0.03)
    if desk:
        room.on_top(desk, make("television", rng), 0.15)
        _top(room, desk, ("lamp", "books", "paper", "paper", "vase", "bottle", "box"), 0.5)
        _chairs(room, desk, (0,))


def _living(room: Room) -> None:
    rng = room.rng
    wall = rng.integers(4)
    sofa = room.against(make("sofa", rng), wall, gap=0.03, clear=0.3)
    if sofa:
        yaw = np.arctan2(sofa.turn[1, 0], sofa.turn[0, 0])
        ahead = sofa.to_world((rng.uniform(-0.2, 0.2), -rng.uniform(1.0, 1.25), 0))
        table = room.stand(make("table", rng, low=True), ahead, yaw, 0.1)
        _top(room, table, ("books", "vase", "bottle", "plant", "paper"), 0.5)
        if rng.random() < 0.7:
            mat = make("floor_mat", rng)
            box = room._box(mat, sofa.turn, np.array([*ahead[:2], 0]))
            if (box[0][:2] > 0).all() and (box[1] < room.size).all():
                room.put(mat, sofa.turn, np.array([*ahead[:2], 0.001]))
        case = room.against(make(rng.choice(("cabinet", "dresser")), rng), (wall + 2) % 4, gap=0.03, clear=0.3)
        room.on_top(case, make("television", rng), 0.1)
        _top(room, case, ("vase", "books", "plant"), 0.4)
        for side in (-1, 1):
            if rng.random() < 0.5:
                lamp = make("lamp", rng, floor=True)
                at = sofa.to_world((side * (sofa.thing.shape.bounds[1][0] + 0.3), 0.15, 0))
                room.stand(lamp, at, tries=1)
    for name, chance in (("armchair", 0.7), ("bookshelf", 0.6), ("plant", 0.6), ("stool", 0.3), ("hung_shelf", 0.3)):
        if rng.random() < chance:
            room.against(make(name, rng), gap=0.0 if name == "hung_shelf" else 0.05, clear=0.2)


def _office(room: Room) -> None:
    rng = room.rng
    for _ in range(rng.integers(1, 4)):
        _study(room)
    for name, chance in (
        ("whiteboard", 0.8),
        ("bookshelf", 0.8),
        ("cabinet", 0.6),
        ("shelves", 0.5),
        ("bookshelf", 0.3),
    ):
        if rng.random() < chance:
            _top(
                room, room.against(make(name, rng), gap=0.0 if name == "whiteboard" else 0.03), ("box", "box", "books")
            )
    if rng.random() < 0.6:
        table = room.stand(make("table", rng))
        if table:
            _top(room, table, ("paper", "books", "bottle", "paper", "bag"), 0.5)
            _chairs(room, table, (0, 1, 2, 3))


def _kitchen(room: Room) -> None:
    rng = room.rng
    wall = rng.integers(4)
    counter = room.against(make("counter", rng), wall, gap=0.02, clear=0.5)
    _top(room, counter, ("bottle", "vase", "box", "bottle", "books"), 0.6)
    room.against(make("hung_cabinet", rng), wall)
    room.against(make("refrigerator", rng), gap=0.04, clear=0.5)
    if rng.random() < 0.5:
        _top(room, room.against(make("counter", rng, sink=False), gap=0.02, clear=0.5), ("bottle", "box", "vase"), 0.6)
    if rng.random() < 0.5:
        room.against(make("towel", rng))
    table = room.stand(make("table", rng))
    if table:
        _top(room, table, ("bottle", "vase", "plant", "paper", "bottle"), 0.5)
        _chairs(room, table, rng.permutation(4)[: rng.integers(2, 5)])


def _dining(room: Room) -> None:
    rng = room.rng
    table = room.stand(make("table", rng), room.size / 2, rng.choice((0, np.pi / 2)), 0.4)
    if table:
        _top(room, table, ("vase", "plant", "bottle", "bottle", "books"), 0.6)
        _chairs(room, table, (0, 1, 2, 3))
    for name, chance in (
        ("cabinet", 0.8),
        ("dresser", 0.5),
        ("shelves", 0.5),
        ("plant", 0.7),
        ("sofa", 0.4),
        ("mirror", 0.3),
    ):
        if rng.random() < chance:
            _top(room, room.against(make(name, rng), gap=0.03), ("vase", "lamp", "bottle", "books"), 0.5)


def _bathroom(room: Room) -> None:
    rng = room.rng
    tub = room.against(make("bathtub", rng), gap=0.01)
    if tub and rng.random() < 0.7:
        front = tub.thing.shape.bounds[0][1]
        room.put(make("shower_curtain", rng), tub.turn, tub.to_world((rng.uniform(-0.4, 0.4), front - 0.01, 0)))
    room.against(make("toilet", rng), gap=0.01, clear=0.4)
    wall = rng.integers(4)
    basin = room.against(make("washbasin", rng), wall, clear=0.4)
    if basin:
        room.put(make("mirror", rng), basin.turn, basin.at + (0, 0, rng.uniform(0.2, 0.3)))
    for name in ("towel", "towel", "cabinet", "hung_shelf"):
        if rng.random() < 0.7:
            room.against(make(name, rng), gap=0.03 if name == "cabinet" else 0.0)
    room.stand(make("floor_mat", rng), tries=30)


_PROGRAMS = {
    "bedroom": (_bedroom, (3.0, 4.6)),
    "living": (_living, (3.6, 5.6)),
    "office": (_office, (3.4, 5.6)),
    "kitchen": (_kitchen, (3.2, 4.8)),
    "dining": (_dining, (3.4, 5.0)),
    "bathroom": (_bathroom, (2.4, 3.4)),
}
_SHARES = {
    "nyud": {"bedroom": 0.26, "living": 0.22, "office": 0.18, "kitchen": 0.14, "dining": 0.12, "bathroom": 0.08},
    "pascal": {"bedroom": 0.08, "living": 0.4, "office": 0.14, "kitchen": 0.1, "dining": 0.28},
}


def _company(room: Room, rng: np.random.Generator) -> None:
    """People on seats and on the floor, pets, a bicycle, plants and bottles: what PASCAL's images are about."""
    seats = [(placed, seat) for placed in room.placed for seat in placed.thing.seats]
    guests = rng.integers(1, 4)
    for i in rng.permutation(len(seats))[: rng.integers(0, guests + 1)]:
        placed, seat = seats[i]
        room.put(people.person(rng, "sit"), placed.turn, placed.to_world(seat))
        guests -= 1
    for _ in range(max(guests, 0)):
        room.stand(people.person(rng, rng.choice(("stand", "walk", "reach"))), tries=25)
    for kind in ("cat", "dog"):
        if rng.random() < 0.3:
            room.stand(people.pet(rng, kind))
    for name, chance in (("plant", 0.5), ("bicycle", 0.2)):
        if rng.random() < chance:
            room.stand(make(name, rng))
    for placed in list(room.placed):
        if placed.thing.kind == "table" and rng.random() < 0.8:
            room.on_top(placed, make("bottle", rng))


def _openings(room: Room) -> None:
    rng = room.rng
    if rng.random() < 0.75:
        room.against(make("door", rng), clear=0.6)
    walls = rng.permutation(4)[: rng.choice((0, 1, 2), p=(0.12, 0.5, 0.38))]
    for wall in walls:
        room.window(wall)
    if rng.random() < 0.2:
        room.against(make("column", rng, height=room.size[2]))


def _finishing(room: Room) -> None:
    rng = room.rng
    # Whatever still fits along bare walls: an empty room makes a dull picture.
    for name in ("chair", "stool", "bookshelf", "dresser", "cabinet", "shelves", "armchair", "desk", "night_stand"):
        if rng.random() < 0.22:
            _top(
                room, room.against(make(name, rng), gap=0.04, clear=0.1, tries=6), ("vase", "lamp", "box", "books"), 0.4
            )
    for name, chance in (("picture", 0.9), ("picture", 0.7), ("picture", 0.4)):
        if rng.random() < chance:
            room.against(make(name, rng))
    for name in ("box", "bag", "box", "bag", "clothes", "lamp", "books"):
        if rng.random() < 0.3:
            options = {"floor": True} if name == "lamp" else {}
            room.stand(make(name, rng, **options), tries=4)
    if rng.random() < 0.8:
        at = room.size[:2] * rng.uniform(0.35, 0.65, 2)
        room.put(make("ceiling_lamp", rng, height=room.size[2] - 0.001), np.eye(3), (*at, 0))


def furnish(layout: str, seed: int, split: str, index: int) -> Scene:
    """The scene of one image: everything but the camera."""
    rng = stream(seed, split, index, "furniture")
    shares = _SHARES[layout]
    program, (least, most) = _PROGRAMS[rng.choice(list(shares), p=list(shares.values()))]
    room = Room(rng, stream(seed, split, index, "look"), (*rng.uniform(least, most, 2), rng.uniform(2.4, 3.0)))
    _openings(room)
    program(room)
    if layout == "pascal" or rng.random() < 0.06:
        _company(room, stream(seed, split, index, "company"))
    _finishing(room)
    room.shell()
    room.lamps()
    return room.scene()
