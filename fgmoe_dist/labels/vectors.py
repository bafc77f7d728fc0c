"""Vector map: C numbers for each pixel. Unit vectors are directions, such as surface normals; free ones are colours,
such as albedo. A flip turns the x of a direction around and leaves a colour as it is; neither changes with the scale.

Eight bits are kept as they are and decoded when a batch is filled. Of unit vectors they code n = 2x/255 - 1, of free
ones the range: lo + (hi - lo) x / 255.

Shapes: C components; H, W the array's size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fgmoe_dist.labels.base import Label

if TYPE_CHECKING:
    from torch import Tensor

MOST_CHANNELS = 128  # what OpenCV splits and resizes
SHORTEST = 0.1  # a coded unit vector that is shorter is none
TOLERANCE = 0.01


@dataclass(frozen=True)
class VectorMap(Label):
    """
    Attributes:
        channels: C.
        unit: directions of length 1, the first component of which points to the right; else free components.
        range: lowest and highest value of a free component.
    """

    channels: int = 3
    unit: bool = False
    range: tuple[float, float] = (0.0, 1.0)

    kind = "vectors"
    dtypes = ("uint8", "float32")
    extensions = ("npy",)
    ignore = float("nan")

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise ValueError(f"channels is {self.channels}: give 1 to {MOST_CHANNELS}")
        if self.unit and self.channels < 2:
            raise ValueError("a unit vector of one channel says nothing: give more channels, or unit: false")
        if len(self.range) != 2 or not self.range[0] < self.range[1]:
            raise ValueError(f"range is {list(self.range)}: give the lowest value and a higher one")

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> Label:
        if "range" in definition:  # JSON has lists only
            definition = {**definition, "range": tuple(definition["range"])}
        return super().of(definition)

    @property
    def components(self) -> int:
        return self.channels

    @property
    def meaning(self) -> str:
        coded, low, high = f"npy: uint8 [H, W, {self.channels}], ", *self.range
        if not self.unit:
            return f"{coded}{low:g} + {high - low:g} x / 255; or float32, NaN = invalid"
        black = f"({', '.join('0' * self.channels)}) = invalid"
        return f"{coded}n = 2x/255 - 1 then scaled to unit length, {black}; or float32 unit vectors, NaN = invalid"

    def native(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype != np.uint8:
            return stored
        planes_CHW = np.empty((self.channels, *stored.shape[:2]), np.float32)
        self.fill(planes_CHW, stored)
        return np.moveaxis(planes_CHW, 0, -1)

    def empty(self, count: int, size_hw: tuple[int, int]) -> Tensor:
        import torch

        return torch.full((count, self.channels, *size_hw), torch.nan)

    def fill(self, inner_Chw: np.ndarray, label_hwC: np.ndarray) -> None:
        if label_hwC.dtype != np.uint8:
            np.copyto(inner_Chw, np.moveaxis(label_hwC, -1, 0), casting="same_kind")
        elif self.unit:
            _decode_unit(label_hwC, inner_Chw)
        else:
            low, high = self.range
            for plane_hw, coded_hw in zip(inner_Chw, cv2.split(label_hwC)):  # numpy is slow along an axis of three
                np.multiply(coded_hw, np.float32((high - low) / 255), out=plane_hw)
                plane_hw += np.float32(low)

    def valid(self, label: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Of an array `[H, W, C]` or of a batch `[B, C, H, W]`."""
        return (label == label).all(-1 if label.ndim == 3 else 1)

    def mirror(self, label_hwC: np.ndarray) -> np.ndarray:
        return mirror_unit(label_hwC) if self.unit else label_hwC

    def resize(self, prediction_hwC: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """Interpolated; directions are made unit again."""
        resized_HWC = super().resize(prediction_hwC, size_hw)
        if not self.unit or resized_HWC is prediction_hwC:
            return resized_HWC
        length_HW1 = np.linalg.norm(resized_HWC, axis=2, keepdims=True)
        return resized_HWC / np.maximum(length_HW1, 1e-12)

    def strange(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.uint8:
            return stored[:0].ravel()  # every byte codes something
        low, high = (-1.0, 1.0) if self.unit else self.range
        slack = TOLERANCE * (high - low)
        return stored[(stored < low - slack) | (stored > high + slack)]


def _decode_unit(coded_HWC: np.ndarray, out_CHW: np.ndarray) -> None:
    """Write coded directions as float32 planes `[C, H, W]` of unit vectors, NaN where invalid.

    Invalid is (0, 0, 0), which codes no unit vector, and whatever codes a vector shorter than 0.1: the grey of a zero
    vector, which uint8 can only miss by half a step. Plane by plane, because numpy is slow along an axis of three.
    """
    coded_CHW = cv2.split(coded_HWC)
    for plane_HW, coded_HW in zip(out_CHW, coded_CHW):
        np.multiply(coded_HW, np.float32(2 / 255), out=plane_HW)
        plane_HW -= 1
    length_HW = np.sqrt(np.einsum("chw,chw->hw", out_CHW, out_CHW))
    length_HW[(functools.reduce(np.bitwise_or, coded_CHW) == 0) | (length_HW < SHORTEST)] = np.nan
    out_CHW /= length_HW


def mirror_unit(vector_HWC: np.ndarray) -> np.ndarray:
    """A copy of stored or native directions with x turned around; what is invalid stays so, nothing else becomes so."""
    turned_HWC = vector_HWC.copy()
    x_HW, turned_HW = vector_HWC[..., 0], turned_HWC[..., 0]
    if vector_HWC.dtype != np.uint8:
        np.negative(x_HW, out=turned_HW)
        return turned_HWC
    rest_HW = functools.reduce(np.bitwise_or, np.moveaxis(vector_HWC[..., 1:], -1, 0))
    np.subtract(255, x_HW, out=turned_HW, where=(x_HW | rest_HW) != 0)
    turned_HW[(x_HW == 255) & (rest_HW == 0)] = 1  # (255, 0, 0), no unit vector, would be black
    return turned_HWC


def mark_invalid(coded_HWC: np.ndarray, keep_HW: np.ndarray) -> np.ndarray:
    """A copy with (0, 0, 0), the stored mark of an invalid direction, wherever `keep_HW` is false."""
    return np.where(keep_HW[..., None], coded_HWC, np.uint8(0))
