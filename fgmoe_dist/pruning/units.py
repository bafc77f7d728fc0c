"""The tensors of an InterroGate model whose gates are fixed, without the channels that none of them takes.

Legend: L layers, T tasks, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fgmoe_dist.decoders.interrogate import to_gates

_ALPHA = re.compile(r"layers\.(?P<layer>\d+)\.alpha_TC\.weight")
_BLOCK = re.compile(r"layers\.(?P<layer>\d+)\.(own\.(?P<task>\d+)|common)\.(conv|norm)\..+")


def open_gates(tensors: Mapping[str, Tensor]) -> Tensor:
    """`open_LTC` of a checkpoint's learnt gates."""
    found = {int(match["layer"]): value for name, value in tensors.items() if (match := _ALPHA.fullmatch(name))}
    return torch.stack([found[layer] >= 0 for layer in sorted(found)])


def without_units(tensors: Mapping[str, Tensor], open_LTC: Tensor) -> dict[str, Tensor]:
    """Blocks with the channels that gates take, no gates, and all else as it is."""
    found = {}
    for name, value in tensors.items():
        if ".alpha_TC." in name:
            continue
        if block := _BLOCK.fullmatch(name):
            open_TC = open_LTC[int(block["layer"])]
            taken_C = ~open_TC.all(0) if block["task"] is None else open_TC[int(block["task"])]
            if not taken_C.any():
                continue
            value = value[taken_C].clone()
        found[name] = value
    return found


def changes(open_LTC: Tensor) -> dict[str, Any]:
    """What of the configuration is another."""
    return {"decoder": {"gates": to_gates(open_LTC)}}
