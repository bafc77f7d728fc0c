"""Scalar map: one number for each pixel, such as depth, disparity or temperature, as raw float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.labels.base import Label

if TYPE_CHECKING:
    from torch import Tensor

SCALES = ("none", "inverse", "proportional")


@dataclass(frozen=True)
class ScalarMap(Label):
    """
    Attributes:
        unit: the name of the values' unit; may be empty.
        scales: what enlarging an image makes of the values. `inverse`: divided by the scale, as depth is, for what is
            nearer looks larger; `proportional`: multiplied by it, as a length in pixels is, such as disparity.
        positive: valid values are above 0, and 0 marks a pixel without one; else NaN marks it.
    """

    unit: str = ""
    scales: str = "none"
    positive: bool = False

    kind = "scalar"
    dtypes = ("float32",)
    extensions = ("npy",)

    def __post_init__(self) -> None:
        if self.scales not in SCALES:
            raise ValueError(f"scales is {self.scales!r}: use one of {', '.join(SCALES)}")

    @property
    def ignore(self) -> float:
        return 0.0 if self.positive else float("nan")

    @property
    def meaning(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"npy: float32 [H, W]{unit}, {'0' if self.positive else 'NaN'} = invalid"

    def empty(self, count: int, size_hw: tuple[int, int]) -> Tensor:
        import torch

        # Memory that comes as zeros need not be written.
        return torch.zeros(count, *size_hw) if self.positive else torch.full((count, *size_hw), torch.nan)

    def valid(self, label: np.ndarray | Tensor) -> np.ndarray | Tensor:
        return label > 0 if self.positive else label == label  # NaN alone differs from itself

    def rescale(self, label_hw: np.ndarray, scale: float) -> np.ndarray:
        if self.scales == "inverse":
            return label_hw / np.float32(scale)
        return label_hw * np.float32(scale) if self.scales == "proportional" else label_hw

    def strange(self, stored: np.ndarray) -> np.ndarray:
        if self.positive:
            return stored[~(np.isfinite(stored) & (stored >= 0))]
        return stored[np.isinf(stored)]
