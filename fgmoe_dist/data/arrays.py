"""Arrays in .npy files that anyone may have written: plain numbers come out, all else is refused by the file's name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fgmoe_dist.data.named import CURE, GONE, named
from fgmoe_dist.errors import UserError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(path: Path, cure: str = CURE, gone: str | None = GONE) -> np.ndarray:
    """The booleans, integers or floating-point numbers of an .npy file, in this machine's byte order and C's order.

    Nothing is unpickled, and no memory is taken for what a header only claims.

    Raises:
        UserError: the file is missing, cut off or empty, or holds anything else: an archive of arrays, objects,
            structures, complex numbers, texts, times.
    """
    with named(path, cure, gone), path.open("rb") as file:
        _check_header(file, path.stat().st_size)
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def channels_last(array: np.ndarray, order: str) -> np.ndarray:
    """[H, W, C] of [C, H, W] where `order` is chw."""
    return np.moveaxis(array, 0, -1) if order == "chw" and array.ndim == 3 else array


def as_float32(
    value: np.ndarray, path: Path, valid: np.ndarray | None = None, factor: float = 1.0, offset: float = 0.0
) -> np.ndarray:
    """The numbers, times `factor` plus `offset`, in 32 bits; what is not valid, or not finite, may become anything.

    Raises:
        UserError: a valid number is more than 32 bits hold.
    """
    valid = np.isfinite(value) if valid is None else valid
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = value if factor == 1 else value * factor
        narrow = (scaled + offset if offset else scaled).astype(np.float32)
    lost = valid & ~np.isfinite(narrow)
    if lost.any():
        raise UserError(
            f"{path} holds {value[lost].flat[0]:g}, more than 32 bits hold: name it under invalid, or correct it"
        )
    return narrow


def _check_header(file: BinaryIO, size: int) -> None:
    if file.peek(2)[:2] == b"PK":
        raise ValueError("an .npz archive of several arrays: save one with numpy.save")
    read_header = _HEADERS.get(np.lib.format.read_magic(file))
    if read_header is None:
        raise ValueError("no array of plain numbers")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Python objects, which are never unpickled: save plain numbers")
    if dtype.kind not in "biuf":
        raise ValueError(f"values of type {dtype}: save plain numbers")
    if 0 in shape:
        raise ValueError(f"an empty array of shape {shape}")
    there, wanted = size - file.tell(), math.prod(shape) * dtype.itemsize
    if there < wanted:
        raise ValueError(f"cut off: {there} of {wanted} bytes")
