"""Pictures written byte by byte, in forms that image libraries do not write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def write_png(
    path: Path,
    array: np.ndarray,
    bits: int = 8,
    kind: int = GREY,
    palette: list[tuple[int, int, int]] | None = None,
    transparent: bytes | None = None,
    orientation: int | None = None,
) -> Path:
    """A PNG of values `[H, W]` or `[H, W, C]` exactly as given, of 1 to 16 bits."""
    height, width = array.shape[:2]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    if orientation is not None:  # a TIFF of one entry
        chunks.append((b"eXIf", b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)))
    if palette is not None:
        chunks.append((b"PLTE", bytes(value for colour in palette for value in colour)))
    if transparent is not None:
        chunks.append((b"tRNS", transparent))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + _row(row, bits) for row in array))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)
    return path


def _row(row: np.ndarray, bits: int) -> bytes:
    values = row.ravel()
    if bits == 16:
        return values.astype(">u2").tobytes()
    unpacked = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(unpacked.ravel()).tobytes()
