"""How each part of a sample is stored in a shard and read back, bit for bit.

A sample has two forms. The *stored* form is what the archives hold, in the smallest exact type: label maps and images
uint8, depth float32 metres, normals uint8 RGB with n = 2x/255 - 1. The *native* form is the contract's
(docs/contracts.md): it differs for normals only, which become float32 unit vectors with NaN where invalid. Cropping is
done on stored arrays, `native` afterwards on the crop.

Label maps are PNG. Photo-like arrays (an image that is no JPEG, normals, depth) are raw `.npy`: PNG would save a third
of their bytes and cost 8 ms each to decode, more than everything else in a sample together. A JPEG keeps its bytes.
Nothing is ever unpickled.

Shapes: H, W native size; C = 3 colour or vector components.
"""

from __future__ import annotations

import io

import cv2
import numpy as np

IGNORE = 255

# The kind of every key of a sample. `map` is a uint8 label map with 255 = ignore.
KINDS = {
    "image": "image",
    "semseg": "map",
    "human_parts": "map",
    "sal": "map",
    "edge": "map",
    "boundary": "map",
    "depth": "depth",
    "normals": "normals",
    "features": "features",
}

# Which types and ranks a stored array of a kind may have, and which extensions hold it.
_DTYPES = {
    "image": ("uint8",),
    "map": ("uint8",),
    "depth": ("float32",),
    "normals": ("uint8", "float32"),
    "features": ("float16",),
}
_SHAPES = {"image": "[H, W, 3]", "map": "[H, W]", "depth": "[H, W]", "normals": "[H, W, 3]", "features": "[values]"}
EXTENSIONS = {"image": ("jpg", "npy"), "map": ("png",), "depth": ("npy",), "normals": ("npy",), "features": ("npy",)}

# What `index.json` says about each extension's meaning.
MEANING = {
    "image": "jpg: the archive's own JPEG bytes; npy: uint8 [H, W, 3] RGB",
    "map": "png: uint8 [H, W], 255 = ignore",
    "depth": "npy: float32 [H, W] metres, 0 = invalid",
    "normals": "npy: uint8 [H, W, 3], n = 2x/255 - 1 then scaled to unit length, (0, 0, 0) = invalid; "
    "or float32 unit vectors, NaN = invalid",
    "features": "npy: float16, the encoder's levels one after the other, each [C, h, w]",
}

_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


class CodecError(ValueError):
    """Bytes or an array are not what their key promises. Callers add the shard and the sample to the message."""


def keys_of(tasks: list[str] | tuple[str, ...], *, evaluation: bool = False) -> tuple[str, ...]:
    """The sample keys that `tasks` need; `boundary`, odsF's ground truth, is read for evaluation only."""
    extra = ("boundary",) if evaluation and "edge" in tasks else ()
    return (*tasks, *extra)


def check(key: str, stored: np.ndarray, size_hw: tuple[int, int] | None = None) -> None:
    """Raise `CodecError` unless `stored` has the type and shape that `key` promises (and the size of its image)."""
    kind = KINDS[key]
    shape = _SHAPES[kind]
    if stored.dtype.name not in _DTYPES[kind]:
        raise CodecError(f"{key} has type {stored.dtype}, not {' or '.join(_DTYPES[kind])}")
    if stored.ndim != shape.count(",") + 1 or (shape.endswith("3]") and stored.shape[-1] != 3):
        raise CodecError(f"{key} has shape {stored.shape}, not {shape}")
    if stored.size == 0:
        raise CodecError(f"{key} is empty")
    if size_hw is not None and kind != "features" and stored.shape[:2] != tuple(size_hw):
        raise CodecError(f"{key} is {stored.shape[0]}x{stored.shape[1]} but its image is {size_hw[0]}x{size_hw[1]}")


def encode(key: str, stored: np.ndarray) -> tuple[str, bytes]:
    """Bytes of a stored array and the extension that says how to read them.

    Raises:
        CodecError: the array is not of the key's type or shape.
    """
    check(key, stored)
    if KINDS[key] == "map":
        # Unfiltered, label maps are smaller and are read in a third of the time; level 9 would save a few bytes more.
        return "png", cv2.imencode(".png", stored, _PNG_OPTIONS)[1].tobytes()
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(stored), allow_pickle=False)
    return "npy", buffer.getvalue()


def decode(key: str, extension: str, data: bytes | memoryview) -> np.ndarray:
    """The stored array of an entry.

    Raises:
        CodecError: unknown key or extension, damaged bytes, or not of the key's type or shape.
    """
    if key not in KINDS or extension not in EXTENSIONS[KINDS[key]]:
        raise CodecError(f"{key}.{extension} is no known entry")
    if len(data) == 0:
        raise CodecError(f"{key} is 0 bytes long")
    stored = _read_npy(key, data) if extension == "npy" else _read_picture(key, extension, data)
    check(key, stored)
    return stored


def native(key: str, stored: np.ndarray) -> np.ndarray:
    """The contract's form of a stored array; a view where nothing changes."""
    if KINDS[key] == "normals" and stored.dtype == np.uint8:
        planes_CHW = np.empty((3, *stored.shape[:2]), np.float32)
        unit_normals(stored, planes_CHW)
        return np.moveaxis(planes_CHW, 0, -1)
    return stored


def unit_normals(normals_HWC: np.ndarray, out_CHW: np.ndarray) -> None:
    """Write stored or native normals as float32 planes [3, H, W] of unit vectors, NaN where invalid.

    Invalid is (0, 0, 0), which codes no unit vector, and whatever codes a vector shorter than 0.1: the grey of a zero
    vector, which uint8 can only miss by half a step. Plane by plane, because numpy is slow along an axis of three.
    """
    if normals_HWC.dtype != np.uint8:
        out_CHW[...] = np.moveaxis(normals_HWC, -1, 0)
        return
    red_HW, green_HW, blue_HW = cv2.split(normals_HWC)
    for plane_HW, coded_HW in zip(out_CHW, (red_HW, green_HW, blue_HW)):
        np.multiply(coded_HW, np.float32(2 / 255), out=plane_HW)
        plane_HW -= 1
    length_HW = np.sqrt(np.einsum("chw,chw->hw", out_CHW, out_CHW))
    length_HW[((red_HW | green_HW | blue_HW) == 0) | (length_HW < 0.1)] = np.nan
    out_CHW /= length_HW


def mirror_normals(normals_HWC: np.ndarray) -> np.ndarray:
    """A copy of stored or native normals with x turned around; what is invalid stays so, nothing else becomes so."""
    turned_HWC = normals_HWC.copy()
    x_HW, turned_HW = normals_HWC[..., 0], turned_HWC[..., 0]
    if normals_HWC.dtype != np.uint8:
        np.negative(x_HW, out=turned_HW)
        return turned_HWC
    rest_HW = normals_HWC[..., 1] | normals_HWC[..., 2]
    np.subtract(255, x_HW, out=turned_HW, where=(x_HW | rest_HW) != 0)
    turned_HW[(x_HW == 255) & (rest_HW == 0)] = 1  # (255, 0, 0), no unit vector, would be black
    return turned_HWC


def mark_invalid_normals(rgb_HWC: np.ndarray, keep_HW: np.ndarray) -> np.ndarray:
    """A copy with (0, 0, 0), the stored mark of an invalid normal, wherever `keep_HW` is false."""
    return np.where(keep_HW[..., None], rgb_HWC, np.uint8(0))


def _read_npy(key: str, data: bytes | memoryview) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise CodecError(f"{key} is no readable .npy array ({str(error).splitlines()[0]})") from error


def _read_picture(key: str, extension: str, data: bytes | memoryview) -> np.ndarray:
    """OpenCV, because it is twice as quick as Pillow and gives the same bytes.

    The orientation tag is ignored, as the labels were drawn on the pixels as they lie.
    """
    colour = extension == "jpg"
    if colour and bytes(data[-2:]) != b"\xff\xd9" and b"\xff\xd9" not in bytes(data[-64:]):
        raise CodecError(f"{key} is a cut-off JPEG")  # OpenCV would fill the rest with grey and say nothing
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if colour else cv2.IMREAD_UNCHANGED
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise CodecError(f"{key} is no readable {extension} picture") from error
    if array is None:
        raise CodecError(f"{key} is no readable {extension} picture")
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB) if colour else array
