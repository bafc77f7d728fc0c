"""Probabilities of one foreground: the best F over thresholds, and the constant that calls everything salient.

Percentages in 0..100. Shapes: H x W pixels, P valid pixels, V = 256 values of a prediction, T thresholds.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import IGNORE, NAN, Meter, check_prediction


class SaliencyMeter(Meter):
    """Saliency from counts of each of the 256 values of a prediction, on and off the true object.

    `maxF` is the best F (beta^2 = 0.3) over probability >= 0.05, 0.10 .. 0.95, counts pooled over all images.
    `maxF_legacy` is the peers' figure: their meter takes a sigmoid of what is a probability already, so values start
    at 0.5, most thresholds call everything salient, and the score is seldom below that of such a map. `mae` is the
    mean |probability - truth| in 0..1.
    """

    image_metric = "maxF"
    METRICS = ("maxF", "maxF_legacy", "mae")
    BETA_SQUARED = 0.3
    STEPS = np.arange(1, 20)  # twentieths: thresholds 0.05, 0.10 .. 0.95

    def __init__(self, task: str = "sal"):
        super().__init__(task, 2 * 256)

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.uint8, "uint8(255 * probability)")
        valid = label != IGNORE
        salient_P = label[valid].astype(np.int64)
        if salient_P.max(initial=0) > 1:
            raise UserError(
                f"label of {self.task} of image {image_id} has value {salient_P.max()}; "
                "it must be 0, 1 or 255 (ignore): rebuild the shards"
            )
        self._sums += np.bincount(salient_P * 256 + prediction[valid], minlength=2 * 256)

    def compute(self) -> dict[str, float]:
        off_V, on_V = self._sums.reshape(2, 256)
        if not self._sums.any():
            return dict.fromkeys(self.METRICS, NAN)
        value_V = np.arange(256)
        squashed_V = (1 / (1 + np.exp(-value_V / 255))).astype(np.float32)
        legacy_TV = squashed_V[None, :] >= (self.STEPS * 0.05).astype(np.float32)[:, None]
        error = (off_V * value_V + on_V * (255 - value_V)).sum() / 255
        return {
            "maxF": 100 * float(self._rates(self._reaches_threshold())["f"].max()),
            "maxF_legacy": 100 * float(self._rates(legacy_TV)["f"].max()),
            "mae": float(error / self._sums.sum()),
        }

    def curve(self) -> dict[str, np.ndarray]:
        """`threshold`, `precision`, `recall`, `f`: float64 `[256]`, shares in 0..1, at every value a prediction has."""
        value_V = np.arange(256)
        return {"threshold": value_V / 255, **self._rates(value_V[None, :] >= value_V[:, None])}

    def details(self) -> dict[str, float]:
        """Precision and recall (percent) and the threshold at which F is best."""
        if not self._sums.any():
            return {}
        rates = self._rates(self._reaches_threshold())
        best = rates["f"].argmax()
        return {
            "threshold": float(self.STEPS[best] / 20),
            "precision": 100 * float(rates["precision"][best]),
            "recall": 100 * float(rates["recall"][best]),
        }

    def _reaches_threshold(self) -> np.ndarray:
        """bool `[T, V]`. In integers: 51 / 255 is exactly 0.2 and counts as reaching it."""
        return 20 * np.arange(256)[None, :] >= 255 * self.STEPS[:, None]

    def _rates(self, salient_TV: np.ndarray) -> dict[str, np.ndarray]:
        """`precision`, `recall`, `f` = (1 + b) P R / (b P + R) at T thresholds; 0 where nothing true is found."""
        off_V, on_V = self._sums.reshape(2, 256)
        hit_T, wrong_T = salient_TV @ on_V, salient_TV @ off_V
        b, on = self.BETA_SQUARED, on_V.sum()
        # With P = hit / (hit + wrong) and R = hit / on, F is (1 + b) hit / (b on + hit + wrong).
        return {
            "precision": _share(hit_T, hit_T + wrong_T),
            "recall": _share(hit_T, np.full_like(hit_T, on)),
            "f": _share((1 + b) * hit_T, b * on + hit_T + wrong_T),
        }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


class SaliencyConstant(ConstantBaseline):
    """Everything salient: all constants above a threshold call the same pixels salient, the others find nothing."""

    def __init__(self, meter: SaliencyMeter):
        super().__init__(meter, 2)

    def _add(self, label: np.ndarray) -> None:
        self._sums += np.bincount(label[label != IGNORE], minlength=2)

    def _fill(self, meter: Meter) -> None:
        values_2V = np.zeros((2, 256))
        values_2V[:, 255] = self._sums
        meter.merge(values_2V.ravel())
