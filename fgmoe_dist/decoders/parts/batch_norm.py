"""Batch norm whose statistics are those of all ranks, on any device, for decoders whose equations have it.

torch's `SyncBatchNorm` refuses CPUs. Here N ranks with B images each normalise by the statistics of N B images, forward
and backward, so that they compute what one rank with N B images does. Accumulation is another matter: each part of a
step has its own statistics, so that a step of two parts is not the step of one part with twice the images.

Legend: B images, C channels, ... whatever else statistics are taken over, such as h x w.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.Module):
    """Normalises each channel of `x_BC...`; the answer has the dtype of `x`.

    Training is a collective wherever a process group is: every rank calls it alike, forward and backward. Evaluation
    uses the running statistics, and is a fixed affine map per channel: see `affine`.

    The running statistics are alike on every rank, stay fp32 when the module is cast to fewer bits (0.1 of a small
    change would be lost), and are left alone where gradients are off: another look at a batch is no training.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if not self.training:
            scale_C, shift_C = self.affine(wide)
            return (x * _along(scale_C, x) + _along(shift_C, x)).to(x.dtype)
        weight_C, bias_C = self.weight.to(wide), self.bias.to(wide)
        kept = (self.running_mean, self.running_var) if torch.is_grad_enabled() else (None, None)
        if _world(x) == 1:
            return F.batch_norm(x, *kept, weight_C, bias_C, True, self.momentum, self.eps)
        y, mean_C, variance_C = _OverRanks.apply(x.to(wide), weight_C, bias_C, self.eps)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(variance_C, self.momentum)
        return y.to(x.dtype)

    def affine(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """`scale_C` and `shift_C`: in evaluation the answer is `x * scale + shift`. For who merges it into weights."""
        dtype = dtype or self.running_var.dtype
        scale_C = self.weight.to(dtype) * (self.running_var.to(dtype) + self.eps).rsqrt()
        return scale_C, self.bias.to(dtype) - self.running_mean.to(dtype) * scale_C

    def _apply(self, function, recurse: bool = True) -> BatchNorm:
        kept = dict(self._buffers)
        super()._apply(function, recurse)
        for name, buffer in kept.items():
            cast = self._buffers[name]
            if torch.finfo(cast.dtype).bits < 32:
                self._buffers[name] = buffer.to(cast.device)
        return self

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, momentum={self.momentum}, eps={self.eps}"


class _OverRanks(torch.autograd.Function):
    """Normalises by the statistics of all ranks; also answers with mean and unbiased variance.

    One small exchange each way, in fp64 against cancellation. The host waits for none of the numbers.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        here = x.numel() / len(weight_C)
        variance_C, mean_C = (value.double() for value in torch.var_mean(x, _all_but_channels(x), correction=0))
        sums = torch.cat([here * mean_C, here * (variance_C + mean_C.square()), mean_C.new_tensor([here])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean_C, square_C = (sums[:-1] / count).chunk(2)
        variance_C = (square_C - mean_C.square()).clamp(min=0)
        unbiased_C = (variance_C * count / (count - 1)).to(x.dtype)
        inverse_C, mean_C = (variance_C + eps).rsqrt().to(x.dtype), mean_C.to(x.dtype)
        ctx.save_for_backward(x, weight_C, mean_C, inverse_C, count)
        ctx.mark_non_differentiable(mean_C, unbiased_C)
        return (x - _along(mean_C, x)) * _along(weight_C * inverse_C, x) + _along(bias_C, x), mean_C, unbiased_C

    @staticmethod
    def backward(ctx, dy: Tensor, *_) -> tuple[Tensor | None, ...]:
        """Each rank's loss depends on every rank's images: what arrives here is summed over ranks for `x`.

        The gradients of weight and bias stay this rank's own, which an engine averages over ranks as all others.
        """
        x, weight_C, mean_C, inverse_C, count = ctx.saved_tensors
        others = _all_but_channels(x)
        normed = (x - _along(mean_C, x)) * _along(inverse_C, x)
        dbias_C, dweight_C = dy.sum(others), (dy * normed).sum(others)
        sums = torch.stack([dbias_C, dweight_C]).double()
        dist.all_reduce(sums)
        mean_dy_C, mean_product_C = (sums / count).to(x.dtype)
        dx = dy - _along(mean_dy_C, x) - normed * _along(mean_product_C, x)
        return dx * _along(weight_C * inverse_C, x), dweight_C, dbias_C, None


def _world(x: Tensor) -> int:
    """Ranks whose images are normalised together; whoever only counts operations, without data, is alone."""
    return dist.get_world_size() if dist.is_initialized() and not x.is_meta else 1


def _all_but_channels(x: Tensor) -> list[int]:
    return [dimension for dimension in range(x.ndim) if dimension != 1]


def _along(value_C: Tensor, x: Tensor) -> Tensor:
    """`value_C` to be broadcast over `x_BC...`."""
    return value_C.reshape(-1, *[1] * (x.ndim - 2))
