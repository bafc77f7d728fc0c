"""What a label's file means, be it a picture or an .npy: class numbers, measurements, black and white, or vectors.

Everything that cannot be meant is a `UserError` that names the file, what is in it, and the cure (docs/inputs.md).

Shapes: H, W native size; C components of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgmoe_dist.data.arrays import as_float32, channels_last, read_array
from fgmoe_dist.data.pictures import WHITE_16, read_picture
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import IGNORE
from fgmoe_dist.labels.vectors import SHORTEST


def is_array(path: Path) -> bool:
    """Whether a file is an .npy and no picture, by its name."""
    return path.suffix.lower() == ".npy"


def whole_numbers(path: Path) -> np.ndarray:
    """int64 `[H, W]` class or region numbers: a picture's numbers as they are stored, or an .npy of whole numbers."""
    value_HW = _plane(read_array(path), path) if is_array(path) else read_picture(path).numbers()
    if value_HW.dtype.kind == "f":
        value_HW = value_HW.astype(np.float64)  # of 16 bits, 2**53 would be infinite
        broken = ~np.isfinite(value_HW) | (value_HW != np.round(value_HW)) | (np.abs(value_HW) > 2**53)
        if broken.any():
            raise UserError(f"{path} holds value {value_HW[broken][0]:g}, no whole number: save class numbers")
    elif value_HW.dtype == np.uint64 and value_HW.max() > np.iinfo(np.int64).max:
        raise UserError(f"{path} holds value {value_HW.max()}, no class number: replace it")
    return value_HW.astype(np.int64)


def measurements(path: Path) -> np.ndarray:
    """Numbers `[H, W]` of any type: a picture's as they are stored, or an .npy."""
    if is_array(path):
        return _plane(read_array(path), path)
    return read_picture(path).measured()


def mask(path: Path) -> np.ndarray:
    """bool `[H, W]`: where a picture, or an .npy from black to white, is brighter than half.

    Raises:
        UserError: its values are a mask's in another form, for which it would come out black or white all over.
    """
    if is_array(path):
        value_HW, full, exact = *_shades(_plane(read_array(path), path), path), True
    else:
        picture = read_picture(path)
        (value_HW, full), exact = picture.brightness(), not picture.altered
    _check_mask(value_HW, full, exact, path)
    return value_HW > full // 2 if full > 1 else value_HW > full / 2


def mask_labels(path: Path) -> np.ndarray:
    """uint8 `[H, W]` of 0, 1 and 255 = ignore, as they stand in the file."""
    value_HW = whole_numbers(path)
    strange = np.setdiff1d(value_HW, (0, 1, IGNORE))
    if strange.size:
        raise UserError(f"{path} holds value {strange[0]}: encoding labels has 0, 1 and 255; is it a mask?")
    return value_HW.astype(np.uint8)


def marks(invalid: Sequence[float], value: np.ndarray) -> np.ndarray:
    """Numbers that mark what has no label, as a file of this type holds them: in 32 bits -9999.9 is another number."""
    with np.errstate(over="ignore"):
        return np.array(invalid, np.float64).astype(value.dtype if value.dtype.kind == "f" else np.float64)


def colours(path: Path, channels: int, order: str = "hwc") -> np.ndarray:
    """uint8 or uint16 `[H, W, C]` of a picture, red first; a picture has one order of axes."""
    return read_picture(path).colours(channels)


def components(path: Path, channels: int, order: str = "hwc") -> np.ndarray:
    """`[H, W, C]` of an .npy as they are, whose axes are in this order; `[H, W]` will do for one channel."""
    array = read_array(path)
    vector_HWC = channels_last(array, order)
    if vector_HWC.ndim == 2 and channels == 1:
        return vector_HWC[..., None]
    if vector_HWC.ndim != 3 or vector_HWC.shape[-1] != channels:
        wanted = f"[H, W, {channels}]" if order == "hwc" else f"[{channels}, H, W]"
        hint = " (or is its order: chw?)" if order == "hwc" and array.ndim == 3 and array.shape[0] == channels else ""
        raise UserError(f"{path} has shape {array.shape}, not {wanted}: save one vector a pixel{hint}")
    return vector_HWC


def directions(path: Path, channels: int, order: str = "hwc") -> np.ndarray:
    """Directions as their label stores them: uint8 `[H, W, C]`, n = 2x/255 - 1, or float32 of length one, NaN = none.

    A picture, or an .npy of 8 or 16 unsigned bits, has coded directions; any other .npy has them as they are.
    """
    coded_HWC = (components if is_array(path) else colours)(path, channels, order)
    if coded_HWC.dtype not in (np.uint8, np.uint16):
        vector_HWC = as_float32(coded_HWC, path)
        _check_directions(vector_HWC, path)
        return _unit(vector_HWC)
    if coded_HWC.dtype == np.uint8:
        return coded_HWC
    vector_HWC = coded_HWC.astype(np.float32) * np.float32(2 / WHITE_16) - 1
    short_HW = np.linalg.norm(vector_HWC, axis=-1) < SHORTEST
    return _unit(np.where((short_HW | ~coded_HWC.any(-1))[..., None], np.float32(np.nan), vector_HWC))


def _unit(vector_HWC: np.ndarray) -> np.ndarray:
    """Vectors of unit length, NaN where there is no direction."""
    length_HW1 = np.linalg.norm(vector_HWC, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length_HW1 > 1e-6, vector_HWC / length_HW1, np.float32(np.nan))


def _plane(array: np.ndarray, path: Path) -> np.ndarray:
    """`[H, W]`, from `[H, W, 1]` and `[1, H, W]` too."""
    plane = array
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        plane = array[..., 0] if array.shape[-1] == 1 else array[0]
    if plane.ndim != 2:
        raise UserError(f"{path} has shape {array.shape}, not [H, W]: save one number a pixel")
    return plane


def _shades(value_HW: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """An array from black to white, and what white is in it."""
    if value_HW.dtype == bool:
        return value_HW.astype(np.uint8), 1
    if value_HW.dtype in (np.uint8, np.uint16):
        return value_HW, int(np.iinfo(value_HW.dtype).max)
    if value_HW.dtype.kind == "f" and value_HW.min() >= 0 and value_HW.max() <= 1:
        return value_HW, 1
    raise UserError(
        f"{path} has {value_HW.dtype} values of {value_HW.min():g} to {value_HW.max():g}, in which no value is known "
        "to be white: save booleans, 8 bits of 0 to 255, or write `encoding: labels` for 0, 1 and 255"
    )


def _check_mask(value_HW: np.ndarray, full: int, exact: bool, path: Path) -> None:
    """Refuse values that are plainly a mask's, but in which nothing, or everything, is brighter than half."""
    used = np.unique(value_HW)
    low, high = used[0], used[-1]
    shown = ", ".join(f"{value:g}" for value in used[:3])
    if exact and full == IGNORE and len(used) > 1 and used[-1] == IGNORE and used[-2] == 1:
        raise UserError(f"{path} holds {shown}, labels and no mask: write `encoding: labels`")
    if low == high in (0, full) or (len(used) > 2 and not (full == WHITE_16 and high <= 255)):
        return
    if low <= full / 2 < high:
        return
    if high == 1 and full > 1:
        raise UserError(
            f"{path} holds {shown} alone, as a mask black: write `encoding: labels` if 1 is meant, or save 0 and {full}"
        )
    raise UserError(
        f"{path} holds {shown} .. {high:g} where white is {full}, so that none or all is brighter than half: "
        f"save 0 and {full}"
    )


def _check_directions(vector_HWC: np.ndarray, path: Path) -> None:
    """Refuse directions that were coded as colours and saved as floating-point numbers."""
    length_HW = np.linalg.norm(vector_HWC, axis=-1)
    found = length_HW > 1e-6  # neither NaN nor zero
    if not found.any() or vector_HWC[found].min() < 0:
        return
    high = vector_HWC[found].max()
    unit = np.abs(length_HW[found] - 1) < 0.05
    if (high <= 1 and unit.mean() < 0.5) or 100 < high <= 255:
        coded = "2x - 1" if high <= 1 else "2x/255 - 1"
        raise UserError(
            f"{path} has vectors of 0 to {high:.3g} only, colours that nobody decoded: save n = {coded}, or 8 bits"
        )
