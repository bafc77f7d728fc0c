"""The losses as `train.loss_weights` weigh them, for the whole run (LibMTL's EW)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fgmoe_dist.weighting.base import Weighting, WeightingSettings


class FixedSettings(WeightingSettings):
    kind: Literal["fixed"] = Field("fixed", description="how the tasks' losses or gradients are weighed")


class Fixed(Weighting):
    Settings = FixedSettings
    constant = True
