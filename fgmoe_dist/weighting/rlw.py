"""Random loss weighting (Lin et al., arXiv 2111.10603): each step's factors are T softmax(z), z drawn from a normal.

What differs from the paper: its weights sum to 1, these to T, so that their mean is that of equal weights and the same
learning rate serves. They are drawn from (seed, step), so that all ranks, and a resumed run, draw the same.
"""

from __future__ import annotations

import math
import random
from typing import Literal

from pydantic import Field

from fgmoe_dist.weighting.base import Weighting, WeightingSettings


class RLWSettings(WeightingSettings):
    kind: Literal["rlw"] = Field("rlw", description="how the tasks' losses or gradients are weighed")


class RLW(Weighting):
    Settings = RLWSettings

    def weights(self, step: int) -> list[float]:
        draw = random.Random(f"{self.around.seed} {step}")
        powers = [math.exp(draw.gauss(0, 1)) for _ in range(self.tasks)]
        return [self.tasks * power / sum(powers) for power in powers]
