"""Small layers that several parts of the decoder share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of `x_BChw`.

    The field's decoders use batch norm. With two images a rank its statistics are poor, and they would make the
    result depend on how a batch is split over ranks; a norm within each pixel does not.
    """

    def forward(self, x_BChw: Tensor) -> Tensor:
        x_BhwC = x_BChw.permute(0, 2, 3, 1)
        return F.layer_norm(x_BhwC, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def resize(x_BChw: Tensor, size_hw: Sequence[int]) -> Tensor:
    """`x` on another grid, bilinear; itself where it lies on that grid."""
    if x_BChw.shape[-2:] == tuple(size_hw):
        return x_BChw
    return F.interpolate(x_BChw, size_hw, mode="bilinear", align_corners=False)
