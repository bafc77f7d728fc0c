"""Arrays as entries of a shard: which types and shapes an entry promises, and its bytes, exact both ways.

Label maps are PNG. Photo-like arrays are raw `.npy`: PNG would save a third of their bytes and cost 8 ms each to
decode, more than everything else in a sample together. Nothing is ever unpickled.

Shapes: H, W native size; C components of a pixel.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod

import cv2
import numpy as np

from fgmoe_dist.errors import first_line

_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


class CodecError(ValueError):
    """Bytes or an array are not what their key promises. Callers add the shard and the sample to the message."""


class Stored(ABC):
    """What one key of a sample holds, and how a shard keeps it.

    Attributes:
        dtypes: the types that a stored array may have.
        extensions: the file extensions that hold it, of which the builder writes the last.
        meaning: what `index.json` says of the extensions.
        components: the length of the last axis of `[H, W, C]`; None for `[H, W]`.
    """

    dtypes: tuple[str, ...]
    extensions: tuple[str, ...]
    meaning: str
    components: int | None = None

    def check(self, key: str, stored: np.ndarray, size_hw: tuple[int, int] | None = None) -> None:
        """Raise `CodecError` unless `stored` has the type and shape promised (and the size of its image)."""
        if stored.dtype.name not in self.dtypes:
            raise CodecError(f"{key} has type {stored.dtype}, not {' or '.join(self.dtypes)}")
        tail = () if self.components is None else (self.components,)
        if stored.ndim != 2 + len(tail) or stored.shape[2:] != tail:
            raise CodecError(f"{key} has shape {stored.shape}, not [{', '.join(['H', 'W', *map(str, tail)])}]")
        if stored.size == 0:
            raise CodecError(f"{key} is empty")
        if size_hw is not None and stored.shape[:2] != tuple(size_hw):
            found, wanted = ("x".join(map(str, hw)) for hw in (stored.shape[:2], size_hw))
            raise CodecError(f"{key} is {found} but its image is {wanted}")

    def encode(self, key: str, stored: np.ndarray) -> tuple[str, bytes]:
        """The extension that says how to read a stored array, and its bytes; `CodecError` as `check`."""
        self.check(key, stored)
        extension = self.extensions[-1]
        return extension, write_png(stored) if extension == "png" else write_npy(stored)

    def decode(self, key: str, extension: str, data: bytes | memoryview) -> np.ndarray:
        """The stored array of an entry with one of `extensions`; `CodecError` for damaged bytes, and as `check`."""
        if len(data) == 0:
            raise CodecError(f"{key} is 0 bytes long")
        stored = read_npy(key, data) if extension == "npy" else read_picture(key, extension, data)
        self.check(key, stored)
        return stored

    def native(self, stored: np.ndarray) -> np.ndarray:
        """The contract's form of a stored array; the array itself where nothing changes."""
        return stored

    @abstractmethod
    def strange(self, stored: np.ndarray) -> np.ndarray:
        """The values `[N]` of an array that lie outside the valid range; for `fgmoe shards verify`."""


def write_png(stored: np.ndarray) -> bytes:
    """PNG bytes. Unfiltered, label maps are smaller and are read in a third of the time; level 9 would save a few bytes
    more."""
    return cv2.imencode(".png", stored, _PNG_OPTIONS)[1].tobytes()


def write_npy(stored: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(stored), allow_pickle=False)
    return buffer.getvalue()


def read_npy(key: str, data: bytes | memoryview) -> np.ndarray:
    """The array of an .npy file's bytes; pickles are refused."""
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # of foreign bytes numpy's reader raises what comes to it, tokenize.TokenError for one
        raise CodecError(f"{key} is no readable .npy array ({first_line(error)})") from error


def read_picture(key: str, extension: str, data: bytes | memoryview) -> np.ndarray:
    """The pixels of a PNG as they are stored, or of a JPEG in RGB.

    OpenCV, because it is twice as quick as Pillow and gives the same bytes. The orientation tag is ignored, as the
    labels were drawn on the pixels as they lie.
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
