"""Small layers that several parts of the decoder share."""

from __future__ import annotations

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
