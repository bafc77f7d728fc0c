"""What a reader of a data set promises, and what the readers of its files share.

What the labels of the field's two archives mean follows the public code of the MTI-Net, ATRC, InvPT and MLoRE line,
which all read them. What those compute anew at every access (edges, merged parts, masked normals) is computed here, and
the shard builder calls it once for each image. Thinning is `skimage.morphology.thin`, as there.

Shapes: H, W native size; C = 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fgmoe_dist.data import codec
from fgmoe_dist.data.pictures import read_photograph, read_picture
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import Label
from fgmoe_dist.tasks.labelling import labels_of

PACKED = (".gz", ".tgz", ".tar", ".zip")


class Layout:
    """An archive on disk: which images there are, and the labels of each.

    Subclasses say where the files lie and what they mean. Instances are cheap, hold no open file and can be sent to
    other processes.

    Attributes:
        dataset: its name, in shard names and messages.
        tasks: that it has labels for.
        classes: the names of the classes of each task that has some.
        boundary_max_dist: matching radius of odsF as a share of the image diagonal.
        definitions: of each task that is none of the six known ones: its kind of label and its options
            (docs/contracts.md).
        splits: that it has lists of ids for.
        folder, id_lists, needs: the archive's own folder, where in it the lists of ids lie, and what it must hold.
        published: how many images each split has as published, where there is one such archive.
        size: of its images as published, in words.
    """

    dataset: str
    tasks: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    boundary_max_dist: float
    definitions: Mapping[str, Mapping[str, Any]] = {}
    splits = ("train", "val")
    folder: str
    id_lists: str
    needs: tuple[str, ...] = ()
    published: Mapping[str, int] = {}
    size: str = ""

    def __init__(self, root: str | Path, check: bool = True):
        """`check`: refuse a root that is not the data set's."""
        self.root = Path(root)
        if check:
            self._check_root()

    @cached_property
    def labels(self) -> dict[str, Label]:
        """The label of every key of a sample: of each task, and of what evaluation reads beside it."""
        return labels_of(self.tasks, self.classes, self.definitions)

    def ids(self, split: str) -> list[str]:
        """The image ids of a split, in the archive's order.

        Raises:
            UserError: no such split or list, an empty list, an id twice, or one that no shard could hold.
        """
        self._check_split(split)
        ids, what = self.listed_ids(split)
        return check_ids(ids, what)

    def listed_ids(self, split: str) -> tuple[list[str], str]:
        """The ids of a split as they are, and in words what lists them; `UserError` if there is nothing to read."""
        return words(self.root / self.id_lists / f"{split}.txt")

    def image_path(self, id_: str) -> Path:
        """Where the image of an id lies."""
        raise NotImplementedError

    def file_of(self, key: str, id_: str) -> Path:
        """Where the image, or the label of a task, lies; the first of its places if it is in none."""
        places = self.places(id_)[key]
        return next((path for path in places if path.is_file()), places[0])

    def read_labels(self, id_: str) -> dict[str, np.ndarray]:
        """The stored form (see `codec`) of every label that an image has, without the image."""
        raise NotImplementedError

    def places(self, id_: str) -> dict[str, list[Path]]:
        """Where the files of an image may lie, `image` and the tasks; of several, the first that is there counts."""
        return {"image": [self.image_path(id_)]}

    def has_size(self, size_hw: tuple[int, int]) -> bool:
        """Whether an image of the archive as published can have this size."""
        return True

    def files(self, id_: str) -> list[Path]:
        """Files whose sizes told one state of the data set from another before contents did; the first is the image."""
        return [self.image_path(id_)]

    def sources(self, id_: str) -> list[Path]:
        """Every file that a sample is made of; the first is the image."""
        return self.files(id_)

    def placed(self, id_: str) -> list[Path]:
        """The file of every key, each once."""
        return list(dict.fromkeys(self.file_of(key, id_) for key in self.places(id_)))

    def check_labels(self, split: str, ids: Sequence[str]) -> None:
        """Raise `UserError` if a task has no label for any of these images; an archive has all of all."""

    def meaning(self) -> str:
        """What else decides the labels' values, as a line of text."""
        return ""

    def image(self, id_: str) -> np.ndarray:
        """The image, uint8 [H, W, 3] RGB.

        An archive's labels were drawn on the pixels as they are stored, whatever an EXIF tag says.
        """
        return read_photograph(self.image_path(id_), upright=False)[0]

    def pixels(self, id_: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The image and the labels that lie on its pixels, in their stored form."""
        return self.image(id_), self.read_labels(id_)

    def stored(self, id_: str) -> dict[str, np.ndarray]:
        """Image and labels in their stored form, all of one size.

        Raises:
            UserError: a file is missing, damaged, of the wrong size, or holds values outside its range.
        """
        image_HWC, labels = self.pixels(id_)
        sample = {"image": image_HWC}
        for key, array in labels.items():
            try:
                codec.check(key, array, image_HWC.shape[:2], self.labels)
                codec.check_values(key, array, self.labels)
            except codec.CodecError as error:
                raise UserError(f"{self.root}: image {id_}: {error}; repair or remove that file") from error
            sample[key] = array
        return sample

    def read(self, id_: str) -> dict:
        """The sample as docs/contracts.md has it: native resolution, normals as unit vectors, `id` included."""
        return {"id": id_, **codec.native_sample(self.stored(id_), self.labels)}

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"split is {split!r}: use one of {', '.join(self.splits)}")

    def _check_root(self) -> None:
        """Raise `UserError` unless the root is the data set's."""
        for fault in self.root_faults():
            raise UserError(fault)

    def root_faults(self) -> list[str]:
        """What is wrong with the folder as a whole, a line for each fault."""
        if not self.root.is_dir():
            return [f"data set root {self.root} is no folder: give the unpacked {self.folder} archive"]
        missing = [name for name in self.needs if not (self.root / name).is_dir()]
        if not missing:
            return []
        if place := self.elsewhere():
            way = "low" if place in self.root.parents else "high"
            return [f"data set root {self.root} is one folder too {way}: give {place}"]
        packed = next((path for path in sorted(self.root.iterdir()) if path.suffix in PACKED), None)
        cure = f"unpack {packed} first" if packed else "give the folder that holds them"
        return [f"{self.root} is no {self.folder} archive: it lacks {', '.join(missing)}; {cure}"]

    def elsewhere(self) -> Path | None:
        """The folder near the root that is the archive, if there is one."""
        inside = [path for path in sorted(self.root.iterdir()) if path.is_dir()] if self.root.is_dir() else []
        near = [self.root / self.folder, *inside, *list(self.root.resolve().parents)[:2]]
        found = (path for path in near if all((path / name).is_dir() for name in self.needs))
        return next(found, None) if self.needs else None


def read_id_list(path: str | Path) -> list[str]:
    """Image ids of a text file, one a line.

    Raises:
        UserError: unreadable or empty file, an id twice, or an id with other characters than letters, digits, _ and -.
    """
    return check_ids(*words(Path(path)))


def words(path: Path) -> tuple[list[str], str]:
    """The words in an id list, and its name in messages."""
    try:
        ids = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the id list {path}: {error}") from error
    if not ids:
        raise UserError(f"the id list {path} is empty: put one image id on each line")
    return ids, f"the id list {path}"


def check_ids(ids: list[str], what: str) -> list[str]:
    """The ids of `what`, if nothing is wrong with them: `UserError` by the first of `id_faults`."""
    for fault in id_faults(ids, what):
        raise UserError(fault)
    return ids


def id_faults(ids: list[str], what: str) -> Iterator[str]:
    """A line for each id that no shard could hold, and for each that is there twice."""
    seen: set[str] = set()
    for id_ in ids:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", id_):
            yield f"{what} has {id_!r}: an id is letters, digits, _ and - (no extension)"
        if id_ in seen:
            yield f"{what} has {id_} twice: remove one"
        seen.add(id_)


def thin(mask_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: the mask thinned to convergence."""
    from skimage.morphology import thin as skimage_thin  # a second to import, and only builders need it

    return skimage_thin(mask_HW).astype(np.uint8)


def read_label_map(path: Path, allowed: range | tuple[int, ...]) -> np.ndarray:
    """uint8 [H, W] label ids as they are in the file, all of them among `allowed`."""
    picture = read_picture(path)
    if picture.kind == "colour" or picture.values.dtype != np.uint8:
        shape = picture.values.shape
        raise UserError(f"{path} is {picture.values.dtype} {shape}, not one 8-bit channel; replace that file")
    label_HW = picture.numbers()
    strange = np.setdiff1d(np.unique(label_HW), np.array(allowed))
    if strange.size:
        raise UserError(f"{path} holds label {strange[0]}, outside {allowed[0]}..{allowed[-1]}; replace that file")
    return label_HW


def read_binary(path: Path) -> np.ndarray:
    """uint8 [H, W] of 0 and 1 from a picture of shades, as a network's are: brighter than half, whatever values it has.

    A split in which nothing is brighter is refused as a whole (`survey`).
    """
    value_HW, full = read_picture(path).brightness()
    return (value_HW > full // 2).astype(np.uint8)
