"""Prediction head of one task: 3x3 conv, norm, ReLU, 1x1 conv, resized to the input."""

from __future__ import annotations

from typing import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.layers import LayerNorm2d


class Head(nn.Module):
    """`hidden` is the width between the two convolutions; 0: as wide as what comes in."""

    def __init__(self, channels: int, outputs: int, hidden: int = 0):
        super().__init__()
        hidden = hidden or channels
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm = LayerNorm2d(hidden)
        self.predict = nn.Conv2d(hidden, outputs, 1)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: all."""
        return self.parameters()

    def forward(self, x_BChw: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """`prediction_BKHW`, fp32 whatever the precision of the decoder: losses and metrics start here."""
        return to_input(self.predict(F.relu(self.norm(self.conv(x_BChw)))), size_hw)


def to_input(small_BKhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """What a head computes on its grid as the prediction of the input, in fp32."""
    return F.interpolate(small_BKhw.float(), size_hw, mode="bilinear", align_corners=False)
