"""Residual blocks (He et al., arXiv 1512.03385), with layer norm in the place of batch norm: see layers.py.

y = ReLU(F(x) + x)        or a projection of x, 1x1 and norm, where the width changes
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.layers import LayerNorm2d

NARROWING = 4  # a bottleneck's 3x3 convolution has so many times fewer channels


class Residual(nn.Module):
    """`x_BChw` to another width, by the branch that a subclass gives."""

    def __init__(self, given: int, channels: int, branch: nn.Sequential):
        super().__init__()
        self.branch, self.project = branch, None
        if given != channels:
            self.project = nn.Sequential(*conv_norm(given, channels, 1))

    def forward(self, x_BChw: Tensor) -> Tensor:
        return F.relu(self.branch(x_BChw) + (x_BChw if self.project is None else self.project(x_BChw)))


class Basic(Residual):
    """F: two 3x3 convolutions."""

    def __init__(self, given: int, channels: int):
        layers = [*conv_norm(given, channels, 3), nn.ReLU(), *conv_norm(channels, channels, 3)]
        super().__init__(given, channels, nn.Sequential(*layers))


class Bottleneck(Residual):
    """F: 1x1 to a fourth of the width, 3x3, and 1x1 back."""

    def __init__(self, given: int, channels: int):
        narrow = channels // NARROWING
        layers = [*conv_norm(given, narrow, 1), nn.ReLU(), *conv_norm(narrow, narrow, 3), nn.ReLU()]
        super().__init__(given, channels, nn.Sequential(*layers, *conv_norm(narrow, channels, 1)))


def two_blocks(block: Callable[[int, int], Residual], given: int, channels: int) -> nn.Sequential:
    return nn.Sequential(block(given, channels), block(channels, channels))


def conv_norm(given: int, channels: int, size: int) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the grid, and its norm."""
    return nn.Conv2d(given, channels, size, padding=size // 2, bias=False), LayerNorm2d(channels)
