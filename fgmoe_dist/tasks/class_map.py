"""Tasks of classes: one of K for each pixel, as semantic segmentation and human parts are.

Loss: cross entropy, mean over labelled pixels; with `train.class_balance` classes are weighed. Metric: mIoU over all
classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fgmoe_dist.drawing import columns, figures
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import ClassMap
from fgmoe_dist.metrics.encodings import ClassWatch
from fgmoe_dist.metrics.iou import IoUConstant, IoUMeter
from fgmoe_dist.tasks.base import DatasetInfo, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor

    from fgmoe_dist.tasks.class_balance import ClassBalance


class ClassTask(Task):
    label, headline = ClassMap(), "mIoU"

    def __init__(
        self,
        name: str,
        class_names: list[str],
        colours: Sequence[Sequence[int]] | None = None,
        balance: ClassBalance | None = None,
    ):
        """`colours`: RGB of each class in pictures, where the data set has its own; `balance` weighs classes."""
        super().__init__(name)
        self.class_names, self.channels = class_names, len(class_names)
        self.label = self.label.with_classes(class_names)
        self.ignore, self.balance = self.label.ignore, balance
        self.colours = None if colours is None else _rgb(name, colours, self.channels)

    @classmethod
    def create(cls, name: str, info: DatasetInfo, facts: Mapping[str, Any], options: Mapping[str, Any]) -> ClassTask:
        balance, classes = None, list(info.classes[name])
        if strength := options.get("class_balance", 0):
            from fgmoe_dist.tasks.class_balance import ClassBalance

            balance = ClassBalance(len(classes), strength)
        return cls(name, classes, facts.get("colours"), balance)

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        loss_BHW = F.cross_entropy(prediction_BKHW, target_BHW, ignore_index=self.ignore, reduction="none")
        valid_BHW = target_BHW != self.ignore
        if self.balance is None:
            return mean_over_valid(loss_BHW, valid_BHW)
        if loss_BHW.requires_grad:
            self.balance.note(loss_BHW, target_BHW, valid_BHW)
        weight_BHW = self.balance.weights().to(loss_BHW)[target_BHW.where(valid_BHW, 0).long()].where(valid_BHW, 0)
        total = (weight_BHW * loss_BHW.where(valid_BHW, 0)).sum()
        return total / weight_BHW.sum().clamp(min=torch.finfo(weight_BHW.dtype).tiny)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return prediction_KHW.argmax(0).cpu().numpy().astype(self.label.dtype)

    def meter(self) -> IoUMeter:
        return IoUMeter(self.channels, self.class_names, self.name, self.ignore)

    def baseline(self) -> IoUConstant:
        return IoUConstant(self.meter())

    def doubt_labels(self, found: Mapping[str, Any]) -> str | None:
        """Of two classes, one alone, and pixels that are ignored: most likely 255 was meant for the other."""
        nothing, shares = super().doubt_labels(found), found["shares"]
        if nothing or len(shares) != 2 or found["pixels"] == 1 or max(shares) < 1:
            return nothing
        name, other = self.class_names if shares[0] else self.class_names[::-1]
        return (
            f"no pixel is {other}, {100 * found['pixels']:.3g} % are {name} and all others are ignored: if an ignored "
            f"value means {other}, name it under classes ({{{name}: 0, {other}: 255}})"
        )

    def watch(self) -> ClassWatch:
        return ClassWatch(self.channels, self.ignore)

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        return columns.classes(self.title, self.class_names, predictions, truths, self.ignore, self.colours)

    def figures(self, meter: IoUMeter) -> list[figures.Figure]:
        iou = [(name.removeprefix("IoU/"), value) for name, value in meter.details().items()]
        return [figures.class_bars(iou), figures.confusion(meter.confusion, meter.class_names)]


def _rgb(name: str, colours: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """uint8 [K, 3]."""
    try:
        rgb_K3 = np.array(colours, np.uint8).reshape(count, 3)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{name}: colours must be {count} times three numbers from 0 to 255: rebuild the set"
        ) from error
    return rgb_K3
