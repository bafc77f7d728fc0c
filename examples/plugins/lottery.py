"""A weighting method: random weights each step (RLW, arXiv 2111.10603), T times a softmax of normal draws."""

from typing import Literal

import torch
from pydantic import Field

from fgmoe_dist.training.weighting import WEIGHTING
from fgmoe_dist.training.weighting.base import Weighting, WeightingSettings


class LotterySettings(WeightingSettings):
    kind: Literal["lottery"] = Field("lottery", description="how the tasks' losses or gradients are weighed")
    spread: float = Field(1.0, ge=0, description="standard deviation of the draws; 0: equal weights")


class Lottery(Weighting):
    Settings = LotterySettings

    def weights(self, step):
        # By seed and step alone: the same on every rank, and in a run that was resumed.
        generator = torch.Generator().manual_seed(1_000_003 * self.around.seed + step)
        draw_T = torch.randn(self.tasks, generator=generator, dtype=torch.float64)
        return (self.tasks * (self.settings.spread * draw_T).softmax(0)).tolist()


WEIGHTING["lottery"] = Lottery
