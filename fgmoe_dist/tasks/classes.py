"""Semantic segmentation and human parts: one class a pixel.

Loss: cross entropy, mean over labelled pixels. Metric: mIoU over all classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.metrics.meters import IoUMeter
from fgmoe_dist.tasks.base import IGNORE, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


class ClassTask(Task):
    headline = "mIoU"

    def __init__(self, name: str, class_names: list[str]):
        self.name, self.class_names, self.channels = name, class_names, len(class_names)
        self.title = {"semseg": "semantic classes"}.get(name, name.replace("_", " "))

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        from torch.nn import functional as F

        loss_BHW = F.cross_entropy(prediction_BKHW, target_BHW, ignore_index=IGNORE, reduction="none")
        return mean_over_valid(loss_BHW, target_BHW != IGNORE)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return prediction_KHW.argmax(0).cpu().numpy().astype(np.uint8)

    def meter(self) -> IoUMeter:
        return IoUMeter(self.channels, self.class_names, task=self.name)
