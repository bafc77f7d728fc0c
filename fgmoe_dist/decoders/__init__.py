"""Decoders by the name that `decoder.kind` takes: a file and a line for each."""

from __future__ import annotations

from fgmoe_dist.decoders.base import Decoder
from fgmoe_dist.decoders.fgmoe import FGMoE
from fgmoe_dist.decoders.mlore import MLoRE

DECODERS: dict[str, type[Decoder]] = {
    "fgmoe": FGMoE,
    "mlore": MLoRE,
}
