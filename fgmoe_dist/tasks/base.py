"""What a task is: channels, loss, prediction, meter, headline metric.

This package is the only place that knows tasks by name; everything else walks a list of them. torch is imported where
it computes, as `fgmoe score` knows the tasks and needs no torch, nor do its workers.
Shapes: B images, K channels, H x W pixels of the padded input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.metrics.meter import Meter

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255


class Task(ABC):
    """One dense prediction task. `name` is also the key of its label in samples and batches."""

    name: str
    title: str  # the name in words
    channels: int
    headline: str  # the metric that compares runs, a key of the meter's result
    lower_is_better: bool = False
    headline_scale: float = 1.0  # brings the headline to the size of a percentage, to average over tasks

    @abstractmethod
    def loss(self, prediction_BKHW: Tensor, target: Tensor) -> Tensor:
        """Mean over the valid pixels of all images given; 0 (with a gradient of 0) where none is valid."""

    @abstractmethod
    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        """The network's output as the array that meters score and `fgmoe predict` saves (docs/contracts.md)."""

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter with the field's metrics."""


def mean_over_valid(loss_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Mean of `loss` where `valid`; `where` and not a product, so that NaN under an invalid label stays out."""
    total = loss_BHW.where(valid_BHW, 0).sum()
    return total / valid_BHW.sum().clamp(min=1)
