"""What a kind of label owns: its form in a shard, in a sample and in a batch, and how it follows the image's geometry.

A label has two forms as an array. The *stored* form is what the archives hold, in the smallest exact type. The *native*
form is the contract's (docs/contracts.md); `native` makes one of the other. Cropping is done on stored arrays, `fill`
writes the crop into a batch in its native form. torch is imported where a tensor is made, for scoring needs none.

A new kind is a file with a subclass of `Label`, and a line in `KINDS` (`fgmoe_dist/labels/__init__.py`). What a data
set says of it (`definitions` in `index.json`) becomes the fields of the dataclass.

Shapes: B images; C components; H, W native size; h, w a crop; SH, SW the batch's size; x any axes.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from fgmoe_dist.labels.storage import Stored

if TYPE_CHECKING:
    from torch import Tensor


class Label(Stored):
    """One kind of label with its options; instances are frozen dataclasses, so they compare and travel by value."""

    kind: ClassVar[str]
    ignore: float  # what marks a pixel without a label, in batches and in native arrays

    @abstractmethod
    def empty(self, count: int, size_hw: tuple[int, int]) -> Tensor:
        """A batch's tensor of `count` labels in which every pixel is ignored."""

    def fill(self, inner_xhw: np.ndarray, label_hwx: np.ndarray) -> None:
        """Write a stored or native crop into its place of a batch, which `empty` made.

        A label of another sort (floating-point values for class ids) is a TypeError, never a rounded copy.
        """
        np.copyto(inner_xhw, label_hwx, casting="same_kind")

    @abstractmethod
    def valid(self, label: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """bool `[..., H, W]`: which pixels of a native array or of a batch's tensor have a label."""

    def rescale(self, label_hwx: np.ndarray, scale: float) -> np.ndarray:
        """What the values become where the image is enlarged by `scale`."""
        return label_hwx

    def mirror(self, label_hwx: np.ndarray) -> np.ndarray:
        """What the values become where the image is flipped; the pixels have changed places already."""
        return label_hwx

    def resize(self, prediction_hwx: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """A prediction `[h, w]` or `[h, w, C]` at another size; itself where the size is the same."""
        return resize(prediction_hwx, size_hw, cv2.INTER_LINEAR)

    def companions(self, key: str) -> dict[str, Label]:
        """Further keys that evaluation reads beside the label's own `key`, and what they hold."""
        return {}

    def with_classes(self, names: Sequence[str] | None) -> Label:
        """This label for a data set that names its classes so; only a class map differs."""
        return self

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> Label:
        """The label that a definition of `index.json` describes; keys that are not the label's are the task's.

        Raises:
            ValueError, TypeError: an option is not what it should be.
        """
        options = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in definition.items() if key in options})


class IntegerMap(Label):
    """A map of small numbers, stored as PNG; a batch has it as int64, with `ignore` for what has no label."""

    extensions = ("png",)
    count: int  # of the values, which are 0 .. count - 1
    dtype = np.dtype(np.uint8)

    @property
    def ignore(self) -> int:
        return int(np.iinfo(self.dtype).max)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return (self.dtype.name,)

    @property
    def meaning(self) -> str:
        return f"png: {self.dtype.name} [H, W], {self.ignore} = ignore"

    def empty(self, count: int, size_hw: tuple[int, int]) -> Tensor:
        import torch

        return torch.full((count, *size_hw), self.ignore, dtype=torch.int64)

    def valid(self, label: np.ndarray | Tensor) -> np.ndarray | Tensor:
        return label != self.ignore

    def strange(self, stored: np.ndarray) -> np.ndarray:
        return stored[(stored >= self.count) & (stored != self.ignore)]


def resize(array_HWx: np.ndarray, size_hw: tuple[int, int], how: int) -> np.ndarray:
    """An array `[H, W]` or `[H, W, C]` at another size by OpenCV's interpolation `how`; itself at its own size."""
    if array_HWx.shape[:2] == tuple(size_hw):
        return array_HWx
    resized = cv2.resize(np.ascontiguousarray(array_HWx), (size_hw[1], size_hw[0]), interpolation=how)
    return resized.reshape(*size_hw, *array_HWx.shape[2:])  # OpenCV drops an axis of one
