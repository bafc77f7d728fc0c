"""The images of a described data set: pictures, or arrays of numbers whose darkest and brightest the file says.

Shapes: H, W native size; C = 3, red first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import model_validator

from fgmoe_dist.data.arrays import channels_last, read_array
from fgmoe_dist.data.layouts.sections import Files
from fgmoe_dist.errors import UserError

SLACK = 1e-3  # of the range: interpolation oversteps it by rounding


class Photographs(Files):
    """`range` is what black and white are in an .npy of other numbers than 8 bits, `order` that of its axes.

    `labels_on` says which pixels labels lie on where an EXIF tag turns an image: "shown" for the upright image,
    "stored" for the pixels as they are in the file; without it the size of the labels tells, where it can.
    """

    range: tuple[float, float] | None = None
    order: Literal["hwc", "chw"] = "hwc"

    labels_on: Literal["shown", "stored"] | None = None

    later = frozenset({"range", "order", "labels_on"})

    @model_validator(mode="after")
    def _rises(self) -> Photographs:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range: give the value of black and a higher one of white")
        return self

    def read(self, path: Path) -> np.ndarray:
        """uint8 [H, W, 3] of an .npy, to the nearest of 256 levels."""
        array = read_array(path)
        value_HWC = channels_last(array, self.order)
        if value_HWC.ndim != 3 or value_HWC.shape[-1] != 3:
            wanted = "[H, W, 3]" if self.order == "hwc" else "[3, H, W]"
            raise UserError(f"{path} has shape {array.shape}, not {wanted}: say image.order: hwc or chw")
        if self.range is None and value_HWC.dtype == np.uint8:
            return np.ascontiguousarray(value_HWC)
        if self.range is None:
            raise UserError(
                f"{path} is {value_HWC.dtype}: say which values are black and white, as image.range: [0, 1]"
            )
        low, high = self.range
        share_HWC = (value_HWC.astype(np.float64) - low) / (high - low)
        outside_HWC = ~((share_HWC >= -SLACK) & (share_HWC <= 1 + SLACK))  # NaN too
        if outside_HWC.any():
            value = value_HWC[outside_HWC][0]
            raise UserError(f"{path} holds value {value:g}, outside image.range [{low:g}, {high:g}]: correct range")
        return np.rint(255 * np.clip(share_HWC, 0, 1)).astype(np.uint8)
