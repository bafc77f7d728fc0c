"""Class map: one class number for each pixel. Up to 255 classes take 8 bits with 255 = ignore, more 16 with 65535."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from fgmoe_dist.labels.base import IntegerMap, resize
from fgmoe_dist.metrics.meter import IGNORE

MOST_CLASSES = 65535


@dataclass(frozen=True)
class ClassMap(IntegerMap):
    """`count` classes; by default as many as 8 bits hold, for who does not know the data set's."""

    count: int = IGNORE

    kind = "classes"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_CLASSES:
            raise ValueError(f"there are {self.count} classes: name 1 to {MOST_CLASSES}")

    @property
    def dtype(self) -> np.dtype:
        """The type of stored and native ids, and of predicted ones."""
        return np.dtype(np.uint8 if self.count <= IGNORE else np.uint16)

    def resize(self, prediction_hw: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """Each pixel takes the class under its centre; classes are never mixed."""
        return resize(prediction_hw, size_hw, cv2.INTER_NEAREST_EXACT)

    def with_classes(self, names: Sequence[str] | None) -> ClassMap:
        if names is None:
            raise ValueError("its classes have no names")
        return replace(self, count=len(names))
