"""Binary map: 0 or 1, 255 = ignore. What is predicted is `uint8(255 * probability)`, which may be interpolated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fgmoe_dist.labels.base import IntegerMap


@dataclass(frozen=True)
class BinaryMap(IntegerMap):
    kind = "binary"
    count: ClassVar[int] = 2
