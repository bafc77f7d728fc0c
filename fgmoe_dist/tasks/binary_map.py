"""Tasks of one foreground against the rest, as saliency is: two logits for each pixel.

Loss: cross entropy with weights [1 - w, w], w the share of background among the labelled pixels. Metric: maxF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fgmoe_dist.drawing import columns, figures, pictures
from fgmoe_dist.labels import BinaryMap
from fgmoe_dist.metrics.encodings import ByteWatch
from fgmoe_dist.metrics.saliency import SaliencyConstant, SaliencyMeter
from fgmoe_dist.tasks.base import IGNORE, Task, mean_over_valid

if TYPE_CHECKING:
    from torch import Tensor


def no_foreground(found: Mapping[str, Any]) -> str | None:
    """What is said of a split of binary maps that are 0 all over."""
    if found["shares"][1] > 0:
        return None
    return "not one pixel of any image is foreground: are the files' values 0 and 1, or is nothing brighter than half?"


class BinaryTask(Task):
    label, channels, headline = BinaryMap(), 2, "maxF"

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        valid_BHW = target_BHW != IGNORE
        background_share = (target_BHW == 0).sum() / valid_BHW.sum().clamp(min=1)
        weight_K = torch.stack([1 - background_share, background_share]).to(prediction_BKHW)
        loss_BHW = F.cross_entropy(prediction_BKHW, target_BHW, weight=weight_K, ignore_index=IGNORE, reduction="none")
        return mean_over_valid(loss_BHW, valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return (255 * prediction_KHW.float().softmax(0)[1]).cpu().numpy().astype(np.uint8)

    def meter(self) -> SaliencyMeter:
        return SaliencyMeter(self.name)

    def baseline(self) -> SaliencyConstant:
        return SaliencyConstant(self.meter())

    def doubt_labels(self, found: Mapping[str, Any]) -> str | None:
        return super().doubt_labels(found) or no_foreground(found)

    def watch(self) -> ByteWatch:
        return ByteWatch()

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        return columns.probability(self.title, pictures.picture_saliency, predictions, truths)

    def figures(self, meter: SaliencyMeter) -> list[figures.Figure]:
        best = meter.compute()["maxF"]
        return [figures.precision_recall(meter.curve(), meter.details(), best, "maxF", meter.BETA_SQUARED)]
