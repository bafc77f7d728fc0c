"""The meter of boundary tasks: odsF, ois and ap."""

from __future__ import annotations

import numpy as np

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.counts import THRESHOLDS_T, BoundaryCounts, boundary_counts
from fgmoe_dist.metrics.boundary.curve import average_precision, f_measure, precision_recall
from fgmoe_dist.metrics.meter import Meter, check_prediction

_T = len(THRESHOLDS_T)


class BoundaryMeter(Meter):
    """Boundary detection as the SEISM toolbox scores it, counts summed over images at each threshold.

    `odsF` is the best F over thresholds, `ois` the F of the counts each image has at its own best threshold, `ap` the
    area under the curve; all in percent.

    Args:
        max_dist: matching radius as a share of the image diagonal (PASCAL 0.0075, NYUD 0.011).
        task: the task's name.
        label: the sample's key of the thinned truth.
    """

    image_metric = "odsF"

    def __init__(self, max_dist: float, task: str = "edge", label: str = "boundary"):
        if not 0 < max_dist < 1:
            raise UserError(
                f"boundary max_dist is {max_dist}; give the matching radius as a share of the image diagonal, "
                "0.0075 (PASCAL-Context) or 0.011 (NYUD-v2)"
            )
        # matched and predicted at each threshold; truth; the same three at each image's best threshold; images
        super().__init__(task, 2 * _T + 5, label)
        self.max_dist = max_dist

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.uint8, "uint8(255 * probability)")
        self.add_counts(boundary_counts(prediction, label, self.max_dist))

    def add_counts(self, counts: BoundaryCounts) -> None:
        """Add an image that has been counted already."""
        best = f_measure(*precision_recall(counts.matched_T, counts.predicted_T, counts.truth)).argmax()
        self._sums += np.concatenate(
            [
                counts.matched_T,
                counts.predicted_T,
                [counts.truth, counts.matched_T[best], counts.predicted_T[best], counts.truth, 1],
            ]
        )

    def curve(self) -> dict[str, np.ndarray]:
        """`threshold`, `precision`, `recall`, `f`: float64 `[101]`, shares in 0..1."""
        precision_T, recall_T = precision_recall(self._sums[:_T], self._sums[_T : 2 * _T], self._sums[2 * _T])
        f_T = f_measure(precision_T, recall_T)
        return {"threshold": THRESHOLDS_T.astype(np.float64), "precision": precision_T, "recall": recall_T, "f": f_T}

    def compute(self) -> dict[str, float]:
        if self._sums[-1] == 0:
            return dict.fromkeys(("odsF", "ois", "ap"), float("nan"))
        curve = self.curve()
        matched, predicted, truth = self._sums[2 * _T + 1 : 2 * _T + 4]
        return {
            "odsF": 100 * float(curve["f"].max()),
            "ois": 100 * float(f_measure(*precision_recall(matched, predicted, truth))),
            "ap": 100 * average_precision(curve["precision"], curve["recall"]),
        }

    def details(self) -> dict[str, float]:
        """Precision and recall (percent) and the threshold at which F is best."""
        if self._sums[-1] == 0:
            return {}
        curve = self.curve()
        best = curve["f"].argmax()
        return {
            "threshold": float(curve["threshold"][best]),
            "precision": 100 * float(curve["precision"][best]),
            "recall": 100 * float(curve["recall"][best]),
        }
