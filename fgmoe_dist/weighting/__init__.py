"""Weighting methods by the name that `train.weighting.kind` takes: a file and a line for each."""

from __future__ import annotations

from fgmoe_dist.weighting.base import Around, Weighting, WeightingSettings
from fgmoe_dist.weighting.cagrad import CAGrad
from fgmoe_dist.weighting.conflict_routing import ConflictRouting
from fgmoe_dist.weighting.dwa import DWA
from fgmoe_dist.weighting.famo import FAMO
from fgmoe_dist.weighting.fixed import Fixed
from fgmoe_dist.weighting.gradnorm import GradNorm
from fgmoe_dist.weighting.imtl import IMTL
from fgmoe_dist.weighting.mgda import MGDA
from fgmoe_dist.weighting.nash import Nash
from fgmoe_dist.weighting.pcgrad import PCGrad
from fgmoe_dist.weighting.rlw import RLW
from fgmoe_dist.weighting.uncertainty import Uncertainty

WEIGHTING: dict[str, type[Weighting]] = {
    "fixed": Fixed,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "rlw": RLW,
    "pcgrad": PCGrad,
    "mgda": MGDA,
    "cagrad": CAGrad,
    "imtl": IMTL,
    "nash": Nash,
    "gradnorm": GradNorm,
    "famo": FAMO,
    "conflict_routing": ConflictRouting,
}


def create_weighting(settings: WeightingSettings, around: Around) -> Weighting:
    """The method that `settings` describe."""
    return WEIGHTING[settings.kind](settings, around)
