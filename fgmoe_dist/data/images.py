"""Photographs from anywhere: reading them, fitting them to a network's input, bringing predictions back.

Shapes: H x W the photograph's pixels, h x w the fitted ones, SH x SW the network's input, C channels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fgmoe_dist.data.augment import unpad_prediction
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import Label
from fgmoe_dist.labels.base import resize

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MOST_ENLARGED = 2.0
LONGEST_ID = 255 - len(".png")  # bytes; a file system takes no longer name


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 RGB `[H, W, 3]`, upright as its EXIF orientation says.

    Transparent pixels are laid on white; 16-bit values keep their upper 8 bits; of an animation the first
    frame is taken. Raises UserError for what is missing, empty, truncated, or no image.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"image {path}: is empty (0 bytes); copy it again")
        with _bombs_are_errors(), Image.open(path) as image:
            return _rgb(ImageOps.exif_transpose(image), path)
    except UnidentifiedImageError:
        raise UserError(f"image {path}: is no image this reads; convert it to JPEG or PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"image {path}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"image {path}: cannot be read ({reason}); copy or save it again") from None


def list_images(path: str | Path) -> dict[str, Path]:
    """Image files by id, sorted: the file itself, or every image directly in a folder.

    The id is the file's name without its suffix, dots replaced by `_` (a sample's id has none). Raises
    UserError if there is nothing, no image, or if two files would have the same id.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--input {path}: does not exist; name an image or a folder of images")
    if path.is_file():
        return {_image_id(path): path}
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."):
            if _image_id(file) in found:
                raise UserError(
                    f"--input {path}: {found[_image_id(file)].name} and {file.name} share a name; rename one"
                )
            found[_image_id(file)] = file
    if not found:
        raise UserError(f"--input {path}: has no images; put {', '.join(SUFFIXES)} files directly in it")
    return found


@dataclass(frozen=True)
class Fit:
    """How a photograph was fitted, so that what is predicted on it finds the way back."""

    native_hw: tuple[int, int]
    fitted_hw: tuple[int, int]

    def back(self, prediction_HWx: np.ndarray, label: Label) -> np.ndarray:
        """A prediction `[SH, SW]` or `[SH, SW, C]` at the padded input's size as `[H, W]` or `[H, W, C]`.

        Its kind says how: class ids take the nearest pixel, values are interpolated, directions are made unit again.
        Depth stays as it is: metres, under the assumption that the photograph covers as wide an angle as the training
        images did.
        """
        return label.resize(unpad_prediction(prediction_HWx, self.fitted_hw), self.native_hw)


def fit(image_HWC: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, Fit]:
    """The image resized to lie within `size_hw`, keeping its shape; padding is left to `augment.normalise`.

    An image that lies within already and would be enlarged less than twice stays as it is, as in
    evaluation. So predictions on the field's own images are those that are scored.
    """
    height, width = image_HWC.shape[:2]
    scale = min(size_hw[0] / height, size_hw[1] / width)
    if 1 <= scale < MOST_ENLARGED:
        scale = 1.0
    fitted_hw = (min(size_hw[0], max(1, round(height * scale))), min(size_hw[1], max(1, round(width * scale))))
    # INTER_AREA averages what falls into a pixel: a photograph shrunk ten times must not alias.
    image_hwC = resize(image_HWC, fitted_hw, cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return image_hwC, Fit((height, width), fitted_hw)


def _image_id(path: Path) -> str:
    id_ = path.stem.replace(".", "_")
    if len(os.fsencode(id_)) > LONGEST_ID:
        raise UserError(f"image {path}: its name is too long for predictions beside it (ID.png); shorten it")
    return id_


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "I":
        values_HW = np.asarray(image)
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise UserError(f"image {path}: has 32-bit values; save it with 8 or 16 bits a channel")
        return np.repeat((values_HW // 256).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(
            f"image {path}: has floating-point values of unknown range; save it with 8 or 16 bits a channel"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    return np.asarray(image.convert("RGB"))


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    """Pillow warns of an image of 90 to 180 million pixels; it would fill the memory all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
