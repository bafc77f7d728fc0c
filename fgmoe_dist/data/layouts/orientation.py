"""Labels of an image that an EXIF tag turns: do they lie on the image as it is shown, or on its pixels as stored?

Cameras store what the sensor saw and note how to turn it. Some annotation tools obey the note, some do not. Images are
always read upright; a label is turned along if it was drawn on the stored pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fgmoe_dist.data.pictures import turn, turned_size
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import Label, VectorMap


def upright(
    stored: Mapping[str, np.ndarray],
    labels: Mapping[str, Label],
    orientation: int,
    shown_hw: tuple[int, int],
    labels_on: str | None,
    image: Path,
) -> dict[str, np.ndarray]:
    """The labels of an image as they lie on it when it is upright.

    Args:
        stored: arrays `[H, W]` or `[H, W, C]` as they were read, by key.
        labels: what each key holds.
        orientation: the image's EXIF tag, 2 to 8.
        shown_hw: the upright image's size.
        labels_on: "shown" or "stored", as the data set says; None where it says nothing and the size must tell.
        image: its file, for messages.

    Raises:
        UserError: nothing tells which it is, or directions would have to be turned.
    """
    as_stored_hw = turned_size(shown_hw, orientation)
    if labels_on is None and as_stored_hw == tuple(shown_hw):
        raise UserError(
            f"{image} is turned by its EXIF tag, and its size does not tell whether the labels are: write "
            "`labels_on: shown` (or stored) under image, or save the image upright without the tag"
        )
    result = {}
    for key, array_HWx in stored.items():
        on = labels_on or ("stored" if array_HWx.shape[:2] == as_stored_hw else "shown")
        if on == "shown":
            result[key] = array_HWx
            continue
        if isinstance(labels[key], VectorMap) and labels[key].unit:
            raise UserError(
                f"{image} is turned by its EXIF tag and its {key} are not, and directions would point elsewhere: "
                "save both upright, without the tag"
            )
        result[key] = np.ascontiguousarray(turn(array_HWx, orientation))
    return result
