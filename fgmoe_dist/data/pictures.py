"""Pictures read by what they mean, not by how they are stored: the one reader of photographs, labels and predictions.

A picture's numbers are indices of a palette, shades of grey of which one is white, or colours, in any bit depth and
byte order, with or without transparency, perhaps turned by an EXIF tag. `read_picture` tells which; what of it a label
can mean is asked of the `Picture`, which refuses the rest by the file's name. docs/inputs.md says it for users.

Shapes: H, W the size as shown, that is, upright; C channels; N colours of a palette.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fgmoe_dist.data.named import CURE, GONE, named
from fgmoe_dist.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag
WHITE_16 = 65535

# What brings stored pixels upright, by the tag's value.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda array: np.rot90(array, 2),
    4: np.flipud,
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: np.rot90,
}
_EXACT = ("PNG", "BMP", "PPM", "TGA", "TIFF", "WEBP")  # formats that keep numbers, the last two not always


@dataclass(frozen=True)
class Picture:
    """A picture of one frame, upright.

    Attributes:
        kind: "indices" of a palette, "grey" or "colour".
        values: `[H, W]`, of colour `[H, W, 3]`, as they stand in the file: of 2 bits 0 to 3.
        full: what white is in grey and colour; None of numbers that have no white, as those of 32 bits.
        palette_N3: uint8, the colours that indices stand for.
        alpha_HW: the opacity; None where nothing says that a pixel may be transparent.
        keyed: a palette's colour, or one value, is said to be transparent; there is no channel for it.
        altered: why the numbers may not be those that were written; empty where they are.
    """

    path: Path
    kind: str
    values: np.ndarray
    full: int | None = None
    palette_N3: np.ndarray | None = None
    alpha_HW: np.ndarray | None = None
    keyed: bool = False
    altered: str = ""

    @property
    def is_transparent(self) -> bool:
        return self.alpha_HW is not None and bool((self.alpha_HW < np.iinfo(self.alpha_HW.dtype).max).any())

    def numbers(self) -> np.ndarray:
        """`[H, W]` numbers as they stand in the file, as class numbers and measurements do; of a palette the indices.

        Raises:
            UserError: colours, transparent pixels, or a format that may have changed the numbers.
        """
        if self.altered:
            raise UserError(f"{self.path} {self.altered}: save numbers as PNG, or as .npy")
        if self.is_transparent and not self.keyed:
            raise UserError(f"{self.path} has transparent pixels: save the numbers in one channel, without alpha")
        return self._one_channel("numbers")

    def measured(self) -> np.ndarray:
        """As `numbers`, but the colours of a palette are no measurements, unless they are the numbers themselves."""
        if self.kind == "indices":
            used = np.unique(self.values)
            if (self.palette_N3[used] != used[:, None]).any():
                raise UserError(
                    f"{self.path} has a palette of colours, not measurements: save grey of 16 bits, or .npy"
                )
        return self.numbers()

    def brightness(self) -> tuple[np.ndarray, int]:
        """`[H, W]` shades of grey, of a palette those of its colours, and which value is white.

        Raises:
            UserError: other colours than grey, transparent pixels, or numbers of which none is white.
        """
        if self.is_transparent:
            raise UserError(f"{self.path} has transparent pixels: save black and white in one channel, without alpha")
        if self.kind == "indices":
            used = np.unique(self.values)
            colour_N3 = self.palette_N3[used]
            if (colour_N3 != colour_N3[:, :1]).any():
                odd = colour_N3[(colour_N3 != colour_N3[:, :1]).any(1)][0]
                raise UserError(
                    f"{self.path} has the palette's colour {tuple(odd.tolist())}, neither black nor white: "
                    "write `encoding: labels` if the palette's indices are meant, or save it as grey"
                )
            return self.palette_N3[:, 0][self.values], 255
        if self.full is None:
            raise UserError(f"{self.path} has {self.values.dtype} values, none of which is white: save 8 bits")
        return self._one_channel("black and white"), self.full

    def colours(self, channels: int) -> np.ndarray:
        """uint8 or uint16 `[H, W, C]`: grey 1, colour 3, and alpha as one more where it says something or is asked for.

        Raises:
            UserError: other than `channels` channels.
        """
        value_HWC = self.palette_N3[self.values] if self.kind == "indices" else np.atleast_3d(self.values)
        if self.kind != "indices" and self.full not in (255, WHITE_16):
            if self.full is None or self.full > 255:
                raise UserError(f"{self.path} has {self.values.dtype} values of unknown range: save 8 or 16 bits")
            value_HWC = to_8_bits(value_HWC, self.full)
        if self.alpha_HW is not None and (self.is_transparent or channels == value_HWC.shape[2] + 1):
            value_HWC = np.concatenate([value_HWC, self.alpha_HW[..., None]], axis=2)
        if value_HWC.shape[2] != channels:
            found = f"{value_HWC.dtype} of {value_HWC.shape[2]} channels"
            raise UserError(f"{self.path} is {found}, not {channels} of 8 or 16 bits; replace it")
        return value_HWC

    def _one_channel(self, what: str) -> np.ndarray:
        if self.kind != "colour":
            return self.values
        if (self.values != self.values[..., :1]).any():
            raise UserError(f"{self.path} is a colour picture, not {what}: save one channel")
        return self.values[..., 0]


def to_8_bits(value: np.ndarray, full: int) -> np.ndarray:
    """uint8 from 0 to 255 of values from 0 to `full`, which is less."""
    return np.round(value * (255 / full)).astype(np.uint8)


def read_picture(path: Path, cure: str = CURE, gone: str | None = GONE) -> Picture:
    """A picture of numbers. Raises `UserError` by the file's name if it cannot be read, or has several frames."""
    with named(path, cure, gone), _opened(path) as (image, data):
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise UserError(f"{path} has {frames} frames or pages: save one picture in a file")
        return _decode(image, data, path)


def read_photograph(
    path: Path, cure: str = CURE, gone: str | None = GONE, upright: bool = True
) -> tuple[np.ndarray, int]:
    """An image as uint8 RGB `[H, W, 3]`, and the value of its EXIF orientation tag, 1 to 8.

    Transparent pixels are laid on white; deeper values keep their upper 8 bits; of an animation the first frame is
    taken. `upright` turns it as the tag says; without, the pixels are as they are stored.

    Raises:
        UserError: missing, empty, truncated, no image, too large, or of values without a white.
    """
    with named(path, cure, gone), _opened(path) as (image, _):
        orientation = _orientation(image)
        # Pillow itself turns a TIFF while it loads it.
        turned = orientation if upright and image.format != "TIFF" else 1
        return np.ascontiguousarray(turn(_rgb(image, path), turned)), orientation


def turn(array_HWx: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels `[H, W]` or `[H, W, C]` turned or mirrored as an EXIF orientation of 1 to 8 asks."""
    return _TURNS[orientation](array_HWx) if orientation in _TURNS else array_HWx


def turned_size(size_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The size that `turn` makes of a size."""
    return (size_hw[1], size_hw[0]) if orientation >= 5 else tuple(size_hw)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, bytes]]:
    """A picture that is not decoded yet, and the file's bytes.

    Pillow only warns of an image of 90 to 180 million pixels, which would fill the memory all the same.
    """
    data = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            yield image, data


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises whatever comes; it takes no pixel away
        return 1
    return value if value in _TURNS else 1


def _rawmode(image: Image.Image) -> tuple[str, int | None]:
    """How Pillow's decoder unpacks the pixels ("L;2" of two bits of grey), and the maximum that a PPM declares."""
    args = image.tile[0][3] if image.tile else image.mode
    if isinstance(args, str):
        return args, None
    raw = str(args[0]) if args else image.mode
    return raw, args[1] if image.tile[0][0].startswith("ppm") else None


def _decode(image: Image.Image, data: bytes, path: Path) -> Picture:
    (raw, declared), orientation = _rawmode(image), _orientation(image)
    altered = _altered(image, data, raw, declared)
    palette_N3 = None
    if image.mode == "P":
        palette_N3 = np.zeros((256, 3), np.uint8)
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette_N3[: len(colours)] = colours
    if image.mode in ("RGB", "RGBA", "RGBa") and "16" in raw:
        values, alpha_HW, keyed = *_deep_colour(data, orientation, image.format), False
        kind, full = "colour", WHITE_16
    else:
        alpha_HW, keyed = _alpha(image)
        kind, values, full = _values(image, raw, declared)
    turned = 1 if image.format == "TIFF" else orientation
    arrays = (None if array is None else np.ascontiguousarray(turn(array, turned)) for array in (values, alpha_HW))
    values, alpha_HW = arrays
    return Picture(path, kind, values, full, palette_N3, alpha_HW, keyed, altered)


def _values(image: Image.Image, raw: str, declared: int | None) -> tuple[str, np.ndarray, int | None]:
    """What `Picture` calls kind, values and full."""
    mode = image.mode
    if mode == "P":
        return "indices", np.asarray(image), None
    if mode == "1":
        return "grey", np.asarray(image).astype(np.uint8), 1
    if mode in ("L", "LA", "La"):
        grey_HW = np.asarray(image if mode == "L" else image.convert("LA").getchannel("L"))
        return "grey", *_unscaled(grey_HW, raw, declared, image)
    if mode.startswith("I;16"):
        return "grey", np.asarray(image).astype(np.uint16), 4095 if raw == "I;12" else WHITE_16
    if mode == "I":
        return "grey", *_whole(np.asarray(image), raw, declared, image)
    if mode == "F":
        return "grey", np.asarray(image), None
    return "colour", np.asarray(image.convert("RGB")), 255


def _unscaled(grey_HW: np.ndarray, raw: str, declared: int | None, image: Image.Image) -> tuple[np.ndarray, int | None]:
    """8-bit grey as it stands in the file; Pillow stretches fewer bits to 8, and takes signed ones for others."""
    if bits := re.match(r"L;([24])", raw):
        full = 2 ** int(bits[1]) - 1
        return grey_HW // np.uint8(255 // full), full
    if declared is not None and declared != 255:
        return np.round(grey_HW * (declared / 255)).astype(np.uint8), declared
    if _tag(image, 339) == 2:  # SampleFormat: signed
        return grey_HW.view(np.int8), None
    return grey_HW, 255


def _whole(value_HW: np.ndarray, raw: str, declared: int | None, image: Image.Image) -> tuple[np.ndarray, int | None]:
    """Integers of 32 bits, in which Pillow also hands over some of 16."""
    if declared is not None:
        return np.round(value_HW * (declared / WHITE_16)).astype(np.uint16), declared
    if image.format in ("PNG", "PPM"):
        return value_HW.astype(np.uint16), WHITE_16
    if _tag(image, 339) in (None, 1) and "32" in raw:
        return value_HW.view(np.uint32), None
    return value_HW, None


def _alpha(image: Image.Image) -> tuple[np.ndarray | None, bool]:
    """uint8 opacity `[H, W]`, None where there is none, and whether it is that of a colour and not a channel."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return None, False
    keyed = not image.mode.lower().endswith("a")
    return np.asarray(image.convert("RGBA").getchannel("A")), keyed


def _deep_colour(data: bytes, orientation: int, kind: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """uint16 RGB `[H, W, 3]`, of which Pillow would keep 8 bits, and the opacity `[H, W]`."""
    if kind == "TIFF" and orientation != 1:
        raise ValueError("colours of 16 bits, turned by a tag: save it upright")
    value_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if value_HWC is None or value_HWC.dtype != np.uint16 or value_HWC.shape[2:] not in ((3,), (4,)):
        raise ValueError("colours of 16 bits in an unknown order")
    return value_HWC[..., 2::-1], value_HWC[..., 3] if value_HWC.shape[2] == 4 else None


def _altered(image: Image.Image, data: bytes, raw: str, declared: int | None) -> str:
    """Why the numbers may be other than those that were written."""
    compression = str(image.info.get("compression", ""))
    lossy_tiff = image.format == "TIFF" and any(word in compression for word in ("jpeg", "webp", "jp2"))
    if image.format == "GIF":
        return "is a GIF, whose writers put palettes in another order"
    if image.format not in _EXACT or lossy_tiff or (image.format == "WEBP" and not _is_lossless_webp(data)):
        return f"is a {'JPEG in a TIFF' if lossy_tiff else image.format}, whose compression changes numbers"
    if _tag(image, 262) == 0 or (image.format == "PPM" and raw == "1;I"):  # 262: PhotometricInterpretation
        return "says that its 0 is white, so that its numbers may be meant either way"
    if image.mode == "PA" or (declared is not None and declared != 255 and image.mode == "RGB"):
        return "keeps its numbers in a form that is not read exactly"
    return ""


def _is_lossless_webp(data: bytes) -> bool:
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8L"
        place += 8 + size + size % 2
    return False


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF's tag; None where there is none."""
    value = image.tag_v2.get(number) if hasattr(image, "tag_v2") else None
    return value[0] if isinstance(value, tuple) and value else value


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    """uint8 `[H, W, 3]` of a photograph, as it is stored."""
    raw, _ = _rawmode(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        upper_HW = (np.asarray(image) // (16 if raw == "I;12" else 256)).astype(np.uint8)
        return np.repeat(upper_HW[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        sort = "floating-point" if image.mode == "F" else "32-bit"
        raise UserError(f"{path} has {sort} values of unknown range: save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    return np.asarray(image.convert("RGB"))
