"""One meter a kind of label, with the exact meaning the field's public code gives each metric.

Percentages in 0..100, angles in degrees, depth in metres. Shapes: H x W pixels, C classes, P valid pixels.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.meter import Meter, check_prediction

__all__ = ["BoundaryMeter", "DepthMeter", "IoUMeter", "Meter", "NormalsMeter", "SaliencyMeter"]

IGNORE = 255
NAN = float("nan")


class IoUMeter(Meter):
    """Mean intersection over union from a confusion matrix pooled over all images.

    `mIoU` is the mean over all classes, one that never occurs counting 0 (the peers' meter does so); `mIoU_present`
    the mean over the classes that occur in the labels.

    Args:
        num_classes: C; predictions are 0..C-1, labels too or 255 = ignore.
        class_names: C names.
        task: `semseg` or `human_parts`, the label's key.
    """

    image_metric = "mIoU_present"  # over all classes an image of few classes would always look bad

    def __init__(self, num_classes: int, class_names: list[str], task: str = "semseg"):
        assert len(class_names) == num_classes, f"{len(class_names)} names for {num_classes} classes"
        super().__init__(task, num_classes**2)
        self.num_classes, self.class_names = num_classes, list(class_names)

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.uint8, "uint8 class ids")
        last = self.num_classes - 1
        if prediction.max(initial=0) > last:
            raise UserError(
                f"prediction of {self.task} for image {image_id} has class {prediction.max()}; "
                f"save class ids 0..{last} (NYUD's labels on disk count from 1: subtract 1)"
            )
        valid = label != IGNORE
        truth_P = label[valid].astype(np.int64)
        if truth_P.max(initial=0) > last:
            raise UserError(
                f"label of {self.task} of image {image_id} has class {truth_P.max()} of {self.num_classes} classes; "
                "rebuild the shards or correct the list of classes"
            )
        self._sums += np.bincount(truth_P * self.num_classes + prediction[valid], minlength=self.num_classes**2)

    @property
    def confusion(self) -> np.ndarray:
        """Pixels, float64 `[C, C]`: row = true class, column = predicted class."""
        return self._sums.reshape(self.num_classes, self.num_classes).copy()

    def _iou(self) -> tuple[np.ndarray, np.ndarray]:
        """(IoU of each class, NaN where it is in neither labels nor predictions; is it in the labels) `[C]`."""
        confusion = self.confusion
        hit, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        union = truth + predicted - hit
        return np.divide(hit, union, out=np.full_like(hit, NAN), where=union > 0), truth > 0

    def compute(self) -> dict[str, float]:
        iou_C, present_C = self._iou()
        if not present_C.any():
            return {"mIoU": NAN, "mIoU_present": NAN}
        return {
            "mIoU": 100 * float(np.nan_to_num(iou_C).mean()),
            "mIoU_present": 100 * float(iou_C[present_C].mean()),
        }

    def details(self) -> dict[str, float]:
        """IoU of each class by name; NaN for one in neither labels nor predictions."""
        return {f"IoU/{name}": 100 * float(iou) for name, iou in zip(self.class_names, self._iou()[0])}


class DepthMeter(Meter):
    """Depth errors pooled over the pixels with 0 < truth < 80 m; predictions below 1e-9 m count as that.

    `rmse` and `abs_rel` = |p - g| / g, `sq_rel` = (p - g)^2 / g, `log_rmse` in natural logarithms, `delta1..3` the
    percentage with max(p / g, g / p) < 1.25, 1.25^2, 1.25^3.
    """

    MAX_METRES, LEAST_METRES = 80.0, 1e-9
    image_metric = "rmse"
    METRICS = ("rmse", "log_rmse", "abs_rel", "sq_rel", "delta1", "delta2", "delta3")

    def __init__(self):
        super().__init__("depth", 8)

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, "float32 metres")
        valid = (label > 0) & (label < self.MAX_METRES)
        g = label[valid].astype(np.float64)
        p = np.maximum(prediction[valid].astype(np.float64), self.LEAST_METRES)
        error, ratio = p - g, np.maximum(p / g, g / p)
        sums = [(error**2).sum(), (np.log(p / g) ** 2).sum(), (abs(error) / g).sum(), (error**2 / g).sum()]
        self._sums += [len(g), *sums, *(np.count_nonzero(ratio < 1.25**k) for k in (1, 2, 3))]

    def compute(self) -> dict[str, float]:
        pixels, *sums = self._sums
        if pixels == 0:
            return dict.fromkeys(self.METRICS, NAN)
        square, log_square, relative, square_relative, *within = (float(s / pixels) for s in sums)
        values = (square**0.5, log_square**0.5, relative, square_relative, *(100 * w for w in within))
        return dict(zip(self.METRICS, values))


class NormalsMeter(Meter):
    """Angles between predicted and true normals in degrees, pooled over the pixels that have a normal (not NaN).

    The angle is 2 atan2(|p - g|, |p + g|) of the renormalised vectors, stable near 0 and 180 where arccos is not; a
    zero vector is 90 degrees from everything. `median` is within 0.005 degrees of the exact one: it is the middle of
    one of 18000 bins (of two, averaged, for an even count). `within_X` is the percentage with an angle < X.
    """

    image_metric = "mean"
    WITHIN = (11.25, 22.5, 30.0)
    METRICS = ("mean", "median", "within_11.25", "within_22.5", "within_30")
    BINS = 18000

    def __init__(self):
        super().__init__("normals", 1 + len(self.WITHIN) + self.BINS)

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, "float32 unit vectors")
        valid = ~np.isnan(label).any(axis=-1)
        angle_P = angles(prediction[valid].astype(np.float64), label[valid].astype(np.float64))
        self.add_angles(angle_P, np.ones_like(angle_P))

    def add_angles(self, angle_P: np.ndarray, weight_P: np.ndarray) -> None:
        """Add angles in degrees, each seen `weight` times."""
        bin_P = np.minimum((angle_P * (self.BINS / 180)).astype(np.int64), self.BINS - 1)
        self._sums[0] += (angle_P * weight_P).sum()
        self._sums[1:4] += [weight_P[angle_P < limit].sum() for limit in self.WITHIN]
        self._sums[4:] += np.bincount(bin_P, weights=weight_P, minlength=self.BINS)

    def compute(self) -> dict[str, float]:
        cumulative = self._sums[4:].cumsum()
        pixels = cumulative[-1]
        if pixels == 0:
            return dict.fromkeys(self.METRICS, NAN)
        # The two middle ranks (one and the same for an odd count), counted from 0.
        middle = np.searchsorted(cumulative, [(pixels - 1) // 2, pixels // 2], side="right")
        median = float((middle + 0.5).mean() * 180 / self.BINS)
        values = (float(self._sums[0] / pixels), median, *(100 * float(s / pixels) for s in self._sums[1:4]))
        return dict(zip(self.METRICS, values))

    def cumulative(self) -> tuple[np.ndarray, np.ndarray]:
        """(degrees 0..180, share of pixels with a smaller angle in 0..1), float64 `[BINS + 1]` each."""
        count = np.concatenate([[0.0], self._sums[4:].cumsum()])
        return np.linspace(0, 180, self.BINS + 1), count / max(count[-1], 1.0)


def angles(a_P3: np.ndarray, b_P3: np.ndarray) -> np.ndarray:
    """Degrees `[P]` between vectors of any length, float64."""
    a_P3, b_P3 = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (a_P3, b_P3))
    return np.degrees(2 * np.arctan2(np.linalg.norm(a_P3 - b_P3, axis=-1), np.linalg.norm(a_P3 + b_P3, axis=-1)))


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

    def __init__(self):
        super().__init__("sal", 2 * 256)

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
