"""What each image adds to the sums that scores are made of, so that any choice of images can be scored again.

Shapes: N images, S sums of a task's meter.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import to_json, whole_file

FORMAT = 1
# What numpy, zipfile, zlib and JSON raise of a file that is another, cut short or changed.
DAMAGED = (
    OSError, EOFError, MemoryError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, RuntimeError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
PARTS = ("data", "indices", "indptr", "shape")


class ImageSums:
    """By task a sparse matrix `[N, S]` of float64, row n the `Meter.state()` of image `ids[n]` alone.

    An image without the task's label has a row of zeros. Most of a meter's sums are counts of a histogram, of which an
    image has few that are not 0.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._rows: dict[str, list[csr_array]] = {}

    def add(self, image_id: str, states: Mapping[str, np.ndarray]) -> None:
        """One image's sums by task; every image has the same tasks."""
        self.ids.append(image_id)
        for task, state in states.items():
            self._rows.setdefault(task, []).append(csr_array(state[None]))

    def extend(self, other: ImageSums) -> None:
        """Adds another part of the same set, of the same tasks."""
        self.ids += other.ids
        for task, rows in other._rows.items():
            self._rows.setdefault(task, []).extend(rows)

    @property
    def tasks(self) -> list[str]:
        return list(self._rows)

    def matrix(self, task: str, ids: Iterable[str] | None = None) -> csr_array:
        """The task's sums `[N, S]`, of the images `ids` in that order, by default of all in the order of the set."""
        rows_NS = vstack(self._rows[task], format="csr")
        self._rows[task] = [rows_NS]
        if ids is None:
            return rows_NS
        place = {id_: n for n, id_ in enumerate(self.ids)}
        return rows_NS[[place[id_] for id_ in ids]]

    def save(self, path: Path, about: Mapping[str, Any]) -> Path:
        """Writes a `.npz`. `about`, plain JSON, is what a reader needs to make the meters."""
        arrays: dict[str, np.ndarray] = {}
        for task in self.tasks:
            rows_NS = self.matrix(task)
            values = (_narrow(rows_NS.data), _narrow(rows_NS.indices), _narrow(rows_NS.indptr), rows_NS.shape)
            arrays.update({f"{task}/{part}": np.asarray(value) for part, value in zip(PARTS, values)})
        header = to_json({"format": FORMAT, "ids": self.ids, "tasks": self.tasks, "about": about})
        with whole_file(path) as beside, open(beside, "wb") as file:
            np.savez_compressed(file, header=np.frombuffer(header.encode(), np.uint8), **arrays)
        return path

    @classmethod
    def load(cls, path: Path) -> tuple[ImageSums, dict[str, Any]]:
        """What `save` wrote, and its `about`. UserError for any other file; nothing is unpickled."""
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["format"] != FORMAT:
                    raise UserError(f"{path}: is of format {header['format']}, this release reads {FORMAT}")
                sums = cls()
                sums.ids = [str(id_) for id_ in header["ids"]]
                for task in header["tasks"]:
                    sums._rows[task] = [_matrix(*(file[f"{task}/{part}"] for part in PARTS), len(sums.ids))]
                return sums, dict(header["about"])
        except UserError:
            raise
        except DAMAGED:
            raise UserError(
                f"{path}: is not what an evaluation writes there; remove it, or leave the run out"
            ) from None


def _narrow(values: np.ndarray) -> np.ndarray:
    """The same numbers in fewer bytes, where they are whole and small."""
    for kind in (np.uint16, np.uint32):
        fits = values.size and values.min() >= 0 and values.max() <= np.iinfo(kind).max
        if fits and np.array_equal(narrow := values.astype(kind), values):
            return narrow
    return values


def _matrix(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray, images: int) -> csr_array:
    """ValueError unless the parts make a matrix with a row per image; scipy would read beyond them."""
    rows, columns = (int(size) for size in shape)
    bounds = indptr.astype(np.int64)
    whole = rows == images and len(bounds) == rows + 1 and bounds[0] == 0 and (np.diff(bounds) >= 0).all()
    if (
        not whole
        or bounds[-1] != len(data)
        or len(indices) != len(data)
        or np.any((indices < 0) | (indices >= columns))
    ):
        raise ValueError("not a matrix")
    return csr_array((data.astype(np.float64), indices.astype(np.int64), bounds), shape=(rows, columns))
