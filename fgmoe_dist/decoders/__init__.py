"""Decoders by the name that `decoder.kind` takes: a file and a line for each."""

from __future__ import annotations

from fgmoe_dist.decoders.base import Decoder
from fgmoe_dist.decoders.cross_stitch import CrossStitch
from fgmoe_dist.decoders.dense import Dense
from fgmoe_dist.decoders.fgmoe import FGMoE
from fgmoe_dist.decoders.interrogate import Interrogate
from fgmoe_dist.decoders.invpt import InvPT
from fgmoe_dist.decoders.mlore import MLoRE
from fgmoe_dist.decoders.mti_net import MTINet
from fgmoe_dist.decoders.multi_task import MultiTask
from fgmoe_dist.decoders.nddr import NDDR
from fgmoe_dist.decoders.pad_net import PADNet
from fgmoe_dist.decoders.single_task import SingleTask
from fgmoe_dist.decoders.taskexpert import TaskExpert

DECODERS: dict[str, type[Decoder]] = {
    "fgmoe": FGMoE,
    "multi_task": MultiTask,
    "single_task": SingleTask,
    "dense": Dense,
    "pad_net": PADNet,
    "cross_stitch": CrossStitch,
    "nddr": NDDR,
    "mti_net": MTINet,
    "invpt": InvPT,
    "taskexpert": TaskExpert,
    "interrogate": Interrogate,
    "mlore": MLoRE,
}
