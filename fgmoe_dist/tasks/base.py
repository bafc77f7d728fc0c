"""What a task is. A task is one file that owns everything that is peculiar to it, and one line in `TASKS`.

Whatever else needs a task walks a list of them and asks. torch is imported where it computes, as `fgmoe score` knows
the tasks and needs no torch, nor do its workers.
Shapes: B images, K channels, H x W pixels (of the padded input, where a loss is computed).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fgmoe_dist.drawing.columns import Column, Maps
from fgmoe_dist.drawing.figures import Figure
from fgmoe_dist.labels import Label
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.encodings import Watch
from fgmoe_dist.metrics.meter import IGNORE, Meter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IGNORE", "DataSetFacts", "DatasetInfo", "Task", "mean_over_valid"]


class DatasetInfo(Protocol):
    """What tasks need to know of a data set: a `ShardSet` has it, and so has a checkpoint.

    A task may ask for more, as that of boundaries does for `boundary_max_dist`. `definitions`, where there are some,
    describe the tasks that a data set has of its own, `{name: {"kind": ..., ...}}`.
    """

    tasks: list[str]
    classes: dict[str, list[str]]


@dataclass(frozen=True)
class DataSetFacts:
    """A `DatasetInfo` that stands by itself, in plain JSON: what a file of figures says of the set it was made on."""

    tasks: list[str]
    classes: dict[str, list[str]]
    boundary_max_dist: float
    definitions: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, info: Any) -> DataSetFacts:
        return cls(list(info.tasks), info.classes, info.boundary_max_dist, info.definitions)


class Task(ABC):
    """One dense prediction task.

    What needs no data set to be known is told by the class itself, so that runs can be compared without one; a task
    that a data set defines has it from there. `name` is the key of the task's label in samples and batches, `label` the
    kind of it: how it is stored, augmented and marked as missing.
    """

    name: str
    label: Label
    title: str  # the name in words
    channels: int  # of the network's output
    headline: str  # the metric that compares runs, a key of the meter's result
    lower_is_better: bool = False
    headline_scale: float = 1.0  # brings the headline to the size of a percentage, to average over tasks
    unit: str = ""  # of the values predicted, where they have one

    def __init__(self, name: str = ""):
        """`name`: that of a task which a data set defines; every other has its name from its class."""
        self.name = name or type(self).name
        self.title = getattr(type(self), "title", self.name.replace("_", " "))

    @classmethod
    def create(cls, name: str, info: DatasetInfo, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
        """The task for a data set.

        Args:
            name: the class's own, or that of a task which the data set defines.
            info: the data set.
            facts: what the data set's definition says of the task; empty for the tasks in `TASKS`.
            options: settings of the run, of which each task takes those that it knows.
        """
        return cls(name)

    @abstractmethod
    def loss(self, prediction_BKHW: Tensor, target: Tensor) -> Tensor:
        """Mean over the valid pixels of all images given; 0 (with a gradient of 0) where none is valid."""

    @abstractmethod
    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        """The network's output as the array that meters score and `fgmoe predict` saves (docs/contracts.md)."""

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter, whose result has the headline first."""

    def baseline(self) -> ConstantBaseline | None:
        """A fresh baseline for the meter: the best constant prediction. None where nobody has worked one out."""
        return None

    @abstractmethod
    def column(self, predictions: Maps, truths: Maps) -> Column:
        """Predictions and labels of some scenes as pictures, on one scale and with one legend.

        Either may be None in a scene. `fgmoe_dist.drawing.columns` has a builder for each kind of map.
        """

    def figures(self, meter: Meter) -> list[Figure]:
        """Charts of a meter that has seen something, for a report; none where the metrics say all."""
        return []

    def read(self, saved: np.ndarray, name: str) -> np.ndarray:
        """A prediction as a file holds it, of any method, as the meter takes it.

        Raises:
            UserError: the values cannot be what they should; `name` says whose they are.
        """
        return saved

    def doubt_labels(self, found: Mapping[str, Any]) -> str | None:
        """Why the labels of a whole split cannot be meant; None where they can.

        `found` is what `index.json` says of them under `survey` (docs/contracts.md).
        """
        return None if found["pixels"] else "not one pixel of any image has a label"

    def watch(self) -> Watch | None:
        """What looks at a whole set of saved predictions for signs of another encoding; None where nothing is known."""
        return None

    def unit_of(self, metric: str) -> str:
        """The unit of a metric of the meter, where it is that of the values."""
        return ""


def mean_over_valid(loss_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Mean of `loss` where `valid`; `where` and not a product, so that NaN under an invalid label stays out."""
    total = loss_BHW.where(valid_BHW, 0).sum()
    return total / valid_BHW.sum().clamp(min=1)
