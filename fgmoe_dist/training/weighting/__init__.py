"""Weighting methods by the name that `train.weighting.kind` takes: a file and a line for each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from fgmoe_dist.training.weighting.base import Around, Weighting, WeightingSettings
from fgmoe_dist.training.weighting.dwa import DWA
from fgmoe_dist.training.weighting.fixed import Fixed
from fgmoe_dist.training.weighting.pcgrad import PCGrad
from fgmoe_dist.training.weighting.uncertainty import Uncertainty

WEIGHTING: dict[str, type[Weighting]] = {
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "pcgrad": PCGrad,
}


def create_weighting(settings: WeightingSettings, around: Around) -> Weighting:
    """The method that `settings` describe."""
    return WEIGHTING[settings.kind](settings, around)


def _settings_of_kind(values: Any) -> Any:
    """The settings of the method that `kind` names; looked up when a configuration is read, for plug-ins come late."""
    if not isinstance(values, dict):
        return values
    kind = values.get("kind", "fixed")
    if not isinstance(kind, str) or kind not in WEIGHTING:
        known = ", ".join(WEIGHTING)
        raise PydanticCustomError("unknown_kind", f"kind={kind} is no weighting method; choose one of {known}")
    return WEIGHTING[kind].Settings.model_validate(values)


# The type of `train.weighting` in the configuration.
AnyWeighting = Annotated[SerializeAsAny[WeightingSettings], BeforeValidator(_settings_of_kind)]
