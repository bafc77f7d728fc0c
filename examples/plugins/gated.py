"""A kind of expert: the gated linear unit of arXiv 2002.05202, E(x) = (silu(x w_gate) * (x w_up)) w_down."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.kinds.base import Kind, affine


class GatedWeights(NamedTuple):
    """Their names end in their shapes: E experts, C channels, H hidden units."""

    gate_ECH: Tensor
    up_ECH: Tensor
    down_EHC: Tensor


class Gated(Kind):
    Weights = GatedWeights
    inner, unit = 2, "H"  # the first two lead to the hidden units
    kept_units = 4  # what autograd keeps of each hidden unit: both products, silu's result, and their product

    def draw(self, channels, hidden, generator):
        shapes = self.shapes(channels, hidden).items()
        return {name: torch.empty(shape).normal_(std=shape[0] ** -0.5, generator=generator) for name, shape in shapes}

    def hidden(self, x, gate, up):
        return F.silu(affine(x, gate)) * affine(x, up)


KINDS["gated"] = Gated()
