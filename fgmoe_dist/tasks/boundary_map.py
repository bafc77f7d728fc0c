"""Tasks of boundaries: one logit for each pixel.

Loss: binary cross entropy with weight w on boundary pixels and 1 - w elsewhere. Metric: odsF, against a thinned truth
that lies in the sample beside the training target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fgmoe_dist.drawing import columns, figures, pictures
from fgmoe_dist.labels import BoundaryMap
from fgmoe_dist.labels.boundary import truth_key
from fgmoe_dist.metrics.boundary.constant import BoundaryConstant
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.encodings import ByteWatch
from fgmoe_dist.tasks.base import IGNORE, DatasetInfo, Task, mean_over_valid
from fgmoe_dist.tasks.binary_map import no_foreground

if TYPE_CHECKING:
    from torch import Tensor

POSITIVE_WEIGHT = 0.95


class BoundaryTask(Task):
    """
    Args:
        name: the task's.
        max_dist: matching radius of the metric as a share of the image diagonal.
        positive_weight: w of the loss.
    """

    label, channels, headline = BoundaryMap(), 1, "odsF"

    def __init__(self, name: str, max_dist: float, positive_weight: float = POSITIVE_WEIGHT):
        super().__init__(name)
        self.max_dist, self.positive_weight = max_dist, positive_weight

    @classmethod
    def create(cls, name: str, info: DatasetInfo, facts: Mapping[str, Any], options: Mapping[str, Any]) -> BoundaryTask:
        return cls(name, facts["max_dist"], options.get("edge_positive_weight", POSITIVE_WEIGHT))

    @property
    def truth_key(self) -> str:
        """The sample's key of the thinned truth."""
        return truth_key(self.name)

    def loss(self, prediction_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        valid_BHW = target_BHW != IGNORE
        label_BHW = (target_BHW == 1).to(prediction_BKHW)
        loss_BHW = F.binary_cross_entropy_with_logits(prediction_BKHW[:, 0], label_BHW, reduction="none")
        weight_BHW = torch.where(target_BHW == 1, self.positive_weight, 1 - self.positive_weight)
        return mean_over_valid(weight_BHW * loss_BHW, valid_BHW)

    def predict(self, prediction_KHW: Tensor) -> np.ndarray:
        return (255 * prediction_KHW[0].float().sigmoid()).cpu().numpy().astype(np.uint8)

    def meter(self) -> BoundaryMeter:
        return BoundaryMeter(self.max_dist, self.name, self.truth_key)

    def baseline(self) -> BoundaryConstant:
        return BoundaryConstant(self.meter())

    def doubt_labels(self, found: Mapping[str, Any]) -> str | None:
        return super().doubt_labels(found) or no_foreground(found)

    def watch(self) -> ByteWatch:
        return ByteWatch()

    def column(self, predictions: columns.Maps, truths: columns.Maps) -> columns.Column:
        return columns.probability(self.title, pictures.picture_edge, predictions, truths)

    def figures(self, meter: BoundaryMeter) -> list[figures.Figure]:
        return [figures.precision_recall(meter.curve(), meter.details(), meter.compute()["odsF"], "odsF")]
