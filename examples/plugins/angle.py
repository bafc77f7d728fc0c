"""A kind of label: how a line lies in the image, 0 to 180 degrees from its right, with no head and no tail.

Neither a scalar nor a vector will do: a flip makes 180 - a of an angle a, and 179 is next to 0. Three things make a
kind: the label, the task that data sets define with it, and what a data set's YAML file says of its files.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from fgmoe_dist import labels, tasks
from fgmoe_dist.data.layouts import sections
from fgmoe_dist.labels.base import resize
from fgmoe_dist.metrics.meter import NAN, Meter, check_prediction
from fgmoe_dist.tasks.base import mean_over_valid


@dataclass(frozen=True)
class Angle(labels.ScalarMap):
    kind = "angle"

    def mirror(self, label_hw):
        return -label_hw % np.float32(180)

    def resize(self, prediction_hw, size_hw):
        return resize(prediction_hw, size_hw, cv2.INTER_NEAREST_EXACT)  # between 179 and 1 does not lie 90


class AngleMeter(Meter):
    image_metric = "mean"

    def __init__(self, task):
        super().__init__(task, 2)  # pixels, sum of errors

    def _add(self, prediction, label, image_id):
        check_prediction(prediction, self.task, image_id, label.shape, np.floating, "float32 degrees")
        error_P = np.abs(prediction - label)[np.isfinite(label)] % 180
        self._sums += [len(error_P), np.minimum(error_P, 180 - error_P).sum(dtype=np.float64)]

    def compute(self):
        pixels, total = self._sums
        return {"mean": float(total / pixels) if pixels else NAN}


class AngleTask(tasks.KINDS["scalar"]):
    """The network gives cosine and sine of twice the angle, which have no seam."""

    label, channels, unit, headline = Angle("degrees"), 2, "degrees", "mean"

    def loss(self, prediction_BKHW, target_BHW):
        twice_BHW = target_BHW.deg2rad() * 2
        target_BKHW = torch.stack([twice_BHW.cos(), twice_BHW.sin()], 1).nan_to_num(0)
        return mean_over_valid((prediction_BKHW - target_BKHW).abs().sum(1), self.label.valid(target_BHW))

    def predict(self, prediction_KHW):
        cosine_HW, sine_HW = prediction_KHW.float()
        return (torch.atan2(sine_HW, cosine_HW).rad2deg() / 2 % 180).cpu().numpy()

    def meter(self):
        return AngleMeter(self.name)

    def baseline(self):
        return None


class AngleFiles(sections.Section):
    kind = "angle"

    def read(self, task, path):
        return {task: np.load(path, allow_pickle=False).astype(np.float32)}


labels.KINDS["angle"] = Angle
tasks.KINDS["angle"] = AngleTask
sections.SECTIONS["angle"] = AngleFiles
