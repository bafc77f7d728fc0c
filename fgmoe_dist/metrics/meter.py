"""What every meter is: a vector of sums that images add to and ranks add up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, TypeVar

import numpy as np

from fgmoe_dist.errors import UserError

IGNORE = 255  # an unlabelled pixel of a label map, where no class is beyond 254
NAN = float("nan")

Metrics = dict[str, float]  # by metric
Scores = dict[str, Metrics]  # by task

AnySums = TypeVar("AnySums", bound="Sums")


class Sums:
    """float64 sums of fixed length. Counts stay exact up to 2^53, some 10^10 images of 10^6 pixels."""

    def __init__(self, size: int):
        self._sums = np.zeros(size, np.float64)

    def state(self) -> np.ndarray:
        """A copy of the sums, 1-D, of the same length whatever was seen: ranks may add theirs by all_reduce."""
        return self._sums.copy()

    def merge(self, vector: np.ndarray) -> None:
        """Add another's `state()`."""
        assert np.shape(vector) == self._sums.shape, f"merge of {np.shape(vector)} into {self._sums.shape}"
        self._sums += np.asarray(vector, np.float64)

    def empty(self: AnySums) -> AnySums:
        """The same with nothing seen."""
        other = copy(self)
        other._sums = np.zeros_like(self._sums)
        return other


class Meter(Sums, ABC):
    """One task's metrics over a set of images; never keeps a prediction.

    Args:
        task: the task's name, for messages.
        size: number of sums.
        label: the sample's key of what predictions are scored against; by default the task's name.
    """

    image_metric: str  # the key of `compute()` that tells good single images from bad ones

    def __init__(self, task: str, size: int, label: str | None = None):
        super().__init__(size)
        self.task, self.label = task, label or task

    def update(self, prediction: np.ndarray, sample: dict[str, Any]) -> None:
        """Score one image at its native resolution; a sample without the label is skipped.

        Raises:
            UserError: the prediction has another size, type or range than docs/contracts.md asks for.
        """
        label = sample.get(self.label)
        if label is not None:
            self._add(np.asarray(prediction), label, sample.get("id", "?"))

    @abstractmethod
    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None: ...

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The field's metrics, headline first; NaN where nothing was seen."""

    def details(self) -> dict[str, float]:
        """Finer figures, for a report."""
        return {}


def check_prediction(
    prediction: np.ndarray,
    task: str,
    image_id: str,
    shape: tuple[int, ...],
    dtype: type | tuple[type, ...],
    meaning: str,
) -> None:
    """Raise `UserError` unless the prediction has exactly this shape and kind of number (and is finite).

    `dtype` may be abstract (`np.floating`), or several; `meaning` ends the message, as in "save uint8 class ids".
    """
    name = f"prediction of {task} for image {image_id}"
    if prediction.shape != shape:
        got, want = (" x ".join(map(str, s)) or "a scalar" for s in (prediction.shape, shape))
        raise UserError(f"{name} is {got}, the label is {want}; bring it to the image's native size")
    if not issubclass(prediction.dtype.type, dtype):
        raise UserError(f"{name} has type {prediction.dtype}; save {meaning}")
    if np.issubdtype(prediction.dtype, np.floating) and not np.isfinite(prediction).all():
        count = int((~np.isfinite(prediction)).sum())
        raise UserError(f"{name} has {count} values that are NaN or infinite; save {meaning}, finite everywhere")
