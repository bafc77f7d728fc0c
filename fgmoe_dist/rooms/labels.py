"""Which id each kind of thing has in the three label sets the archives use.

NYU-40 numbers from 1 as the archive's PNGs do (0 = unlabelled); VOC-21 in its usual order; `context` is the 459-class
numbering of PASCAL-Context's LabelMap, alphabetical from 1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ids:
    """The ids of one kind."""

    nyu: int
    voc: int
    context: int


_OTHER_STRUCTURE, _OTHER_FURNITURE, _OTHER_PROP = 38, 39, 40

KINDS = {
    "wall": Ids(1, 0, 440),
    "floor": Ids(2, 0, 158),
    "cabinet": Ids(3, 0, 46),
    "bed": Ids(4, 0, 18),
    "chair": Ids(5, 9, 72),
    "armchair": Ids(5, 9, 72),
    "sofa": Ids(6, 18, 368),
    "table": Ids(7, 11, 397),
    "door": Ids(8, 0, 115),
    "window": Ids(9, 0, 454),
    "bookshelf": Ids(10, 0, 349),
    "picture": Ids(11, 0, 287),
    "counter": Ids(12, 0, 96),
    "blinds": Ids(13, 0, 455),
    "desk": Ids(14, 0, 397),
    "shelves": Ids(15, 0, 349),
    "curtain": Ids(16, 0, 105),
    "dresser": Ids(17, 0, 46),
    "pillow": Ids(18, 0, 290),
    "mirror": Ids(19, 0, 252),
    "floor-mat": Ids(20, 0, 330),
    "clothes": Ids(21, 0, 80),
    "ceiling": Ids(22, 0, 68),
    "books": Ids(23, 0, 33),
    "refrigerator": Ids(24, 0, 170),
    "television": Ids(25, 20, 427),
    "paper": Ids(26, 0, 273),
    "towel": Ids(27, 0, 412),
    "shower-curtain": Ids(28, 0, 105),
    "box": Ids(29, 0, 37),
    "whiteboard": Ids(30, 0, 30),
    "person": Ids(31, 15, 284),
    "night-stand": Ids(32, 0, 46),
    "toilet": Ids(33, 0, 408),
    "sink": Ids(34, 0, 357),
    "lamp": Ids(35, 0, 232),
    "bathtub": Ids(36, 0, 17),
    "bag": Ids(37, 0, 9),
    "column": Ids(_OTHER_STRUCTURE, 0, 289),
    "stool": Ids(_OTHER_FURNITURE, 0, 383),
    "plant": Ids(_OTHER_PROP, 16, 308),
    "bottle": Ids(_OTHER_PROP, 5, 34),
    "vase": Ids(_OTHER_PROP, 0, 307),
    "bicycle": Ids(_OTHER_PROP, 2, 23),
    "cat": Ids(_OTHER_PROP, 8, 65),
    "dog": Ids(_OTHER_PROP, 12, 113),
}
