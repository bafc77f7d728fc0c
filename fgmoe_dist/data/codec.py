"""What each key of a sample holds, and its bytes in a shard: the image or cached features here, all else by its label.

A sample has two forms, stored and native (`fgmoe_dist/labels/base.py`). A JPEG keeps its bytes.

`labels` is the label of every key of the data set (`labels.by_key`), by default of the six known tasks.

Shapes: H, W native size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fgmoe_dist.labels import CodecError, Label, Stored
from fgmoe_dist.tasks.labelling import KNOWN_KEYS


class _Image(Stored):
    dtypes, components = ("uint8",), 3
    extensions = ("jpg", "npy")
    meaning = "jpg: the archive's own JPEG bytes; npy: uint8 [H, W, 3] RGB"

    def strange(self, stored: np.ndarray) -> np.ndarray:
        return stored[:0].ravel()


class _Features(Stored):
    dtypes, extensions = ("float16",), ("npy",)
    meaning = "npy: float16, the encoder's levels one after the other, each [C, h, w]"

    def check(self, key: str, stored: np.ndarray, size_hw: tuple[int, int] | None = None) -> None:
        """They have no image's size."""
        if stored.dtype != np.float16 or stored.ndim != 1 or stored.size == 0:
            raise CodecError(f"{key} is {stored.dtype} {stored.shape}, not float16 [values]")

    def strange(self, stored: np.ndarray) -> np.ndarray:
        return stored[~np.isfinite(stored)]


PICTURES: dict[str, Stored] = {"image": _Image(), "features": _Features()}


def entry(key: str, labels: Mapping[str, Label] = KNOWN_KEYS) -> Stored:
    """What a key holds; `CodecError` if the data set has no such key."""
    found = PICTURES.get(key) or labels.get(key)
    if found is None:
        raise CodecError(f"{key} is no known entry")
    return found


def is_entry(key: str, extension: str, labels: Mapping[str, Label] = KNOWN_KEYS) -> bool:
    """Whether a shard of the data set may hold `ID.<key>.<extension>`."""
    return (key in PICTURES or key in labels) and extension in entry(key, labels).extensions


def keys_of(
    tasks: Iterable[str], *, evaluation: bool = False, labels: Mapping[str, Label] = KNOWN_KEYS
) -> tuple[str, ...]:
    """The sample keys that `tasks` need; the ground truth of boundaries is read for evaluation only."""
    tasks = tuple(tasks)
    extra = (key for task in tasks for key in labels[task].companions(task)) if evaluation else ()
    return (*tasks, *extra)


def check(
    key: str, stored: np.ndarray, size_hw: tuple[int, int] | None = None, labels: Mapping[str, Label] = KNOWN_KEYS
) -> None:
    """Raise `CodecError` unless `stored` has the type and shape that `key` promises (and the size of its image)."""
    entry(key, labels).check(key, stored, size_hw)


def check_values(key: str, stored: np.ndarray, labels: Mapping[str, Label] = KNOWN_KEYS) -> None:
    """Raise `CodecError` if a value lies outside the range of its kind."""
    strange = entry(key, labels).strange(stored)
    if strange.size:
        raise CodecError(f"{key} holds value {strange.flat[0]}, which its kind of label has not")


def encode(key: str, stored: np.ndarray, labels: Mapping[str, Label] = KNOWN_KEYS) -> tuple[str, bytes]:
    """The extension that says how to read a stored array, and its bytes.

    Raises:
        CodecError: unknown key, or the array is not of the key's type or shape.
    """
    return entry(key, labels).encode(key, stored)


def decode(key: str, extension: str, data: bytes | memoryview, labels: Mapping[str, Label] = KNOWN_KEYS) -> np.ndarray:
    """The stored array of an entry.

    Raises:
        CodecError: unknown key or extension, damaged bytes, or not of the key's type or shape.
    """
    if not is_entry(key, extension, labels):
        raise CodecError(f"{key}.{extension} is no known entry")
    return entry(key, labels).decode(key, extension, data)


def native(key: str, stored: np.ndarray, labels: Mapping[str, Label] = KNOWN_KEYS) -> np.ndarray:
    """The contract's form of a stored array; a view where nothing changes."""
    return entry(key, labels).native(stored)


def native_sample(sample: Mapping[str, object], labels: Mapping[str, Label] = KNOWN_KEYS) -> dict:
    """A stored sample in the contract's form, `id` included."""
    return {key: value if key == "id" else native(key, value, labels) for key, value in sample.items()}
