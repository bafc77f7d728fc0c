"""A task: how warm a surface is, in kelvin. Its errors weigh less where they are large."""

from torch.nn import functional as F

from fgmoe_dist.labels import ScalarMap
from fgmoe_dist.tasks import TASKS
from fgmoe_dist.tasks.base import mean_over_valid
from fgmoe_dist.tasks.scalar_map import ScalarTask


class Warmth(ScalarTask):
    name, title, unit, headline = "warmth", "temperature", "K", "mae"
    label = ScalarMap("K")

    def loss(self, prediction_BKHW, target_BHW):
        valid_BHW = self.label.valid(target_BHW)
        target_BHW = target_BHW.where(valid_BHW, 0)  # NaN must not reach the loss, whose gradient would be NaN too
        return mean_over_valid(F.smooth_l1_loss(prediction_BKHW[:, 0], target_BHW, reduction="none"), valid_BHW)


TASKS["warmth"] = Warmth
