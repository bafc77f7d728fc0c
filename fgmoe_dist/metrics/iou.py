"""Class maps: mean intersection over union, and the best single class.

Percentages in 0..100. Shapes: H x W pixels, C classes, P valid pixels.
"""

from __future__ import annotations

import numpy as np

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.meter import IGNORE, NAN, Meter, check_prediction


class IoUMeter(Meter):
    """Mean intersection over union from a confusion matrix pooled over all images.

    `mIoU` is the mean over all classes, one that never occurs counting 0 (the peers' meter does so); `mIoU_present`
    the mean over the classes that occur in the labels.

    Args:
        num_classes: C; predictions are 0..C-1, labels too or `ignore`.
        class_names: C names.
        task: the label's key.
        ignore: the value of an unlabelled pixel. Where it is beyond 255 predictions may be uint16.
    """

    image_metric = "mIoU_present"  # over all classes an image of few classes would always look bad

    def __init__(self, num_classes: int, class_names: list[str], task: str = "semseg", ignore: int = IGNORE):
        assert len(class_names) == num_classes, f"{len(class_names)} names for {num_classes} classes"
        super().__init__(task, num_classes**2)
        self.num_classes, self.class_names, self.ignore = num_classes, list(class_names), ignore

    def _add(self, prediction: np.ndarray, label: np.ndarray, image_id: str) -> None:
        few = self.ignore == IGNORE
        kinds, meaning = (np.uint8, "uint8 class ids") if few else ((np.uint8, np.uint16), "uint16 class ids")
        check_prediction(prediction, self.task, image_id, label.shape, kinds, meaning)
        last = self.num_classes - 1
        if prediction.max(initial=0) > last:
            raise UserError(
                f"prediction of {self.task} for image {image_id} has class {prediction.max()}; "
                f"save class ids 0..{last} (NYUD's labels on disk count from 1: subtract 1)"
            )
        valid = label != self.ignore
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


class IoUConstant(ConstantBaseline):
    """One class everywhere: the most frequent, for with hits h of n pixels only that class's IoU, h / n, is not 0."""

    def __init__(self, meter: IoUMeter):
        super().__init__(meter, meter.num_classes)

    def _add(self, label: np.ndarray) -> None:
        self._sums += np.bincount(label[label != self._meter.ignore], minlength=len(self._sums))

    def _fill(self, meter: Meter) -> None:
        confusion_CC = np.zeros((len(self._sums), len(self._sums)))
        confusion_CC[:, self._sums.argmax()] = self._sums
        meter.merge(confusion_CC.ravel())
