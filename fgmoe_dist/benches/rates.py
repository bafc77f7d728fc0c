"""One rank's speed at each kind of operation that a training step consists of, at the shapes it has there.

Every result is a new tensor, as it is in training, since a large new tensor costs its pages too. Feature maps are
channels-last, as they are behind the decoder's first layer norm.

Legend: B images, C channels, K classes, h x w grid, M rows, E experts, H hidden size of a fine expert.
"""

from __future__ import annotations

from typing import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fgmoe_dist.benches.timing import seconds_of
from fgmoe_dist.experts.kernels import AUTO, choose_kernel, find_kernel
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.kinds.ffn import FFNWeights
from fgmoe_dist.planning.profile import Compute, Curve
from fgmoe_dist.precision import PRECISIONS

GRID = (56, 72)
CHANNELS = (16, 64, 256)
WIDTHS = ((96, 32), (256, 64))  # C x H of fine experts
ROWS_PER_EXPERT = (32, 256, 2048)
EXPERTS, TOP_K = 16, 4
aten = torch.ops.aten

# What is measured: kind, size, units, and the operation.
Measured = tuple[str, float, float, Callable[[], object]]


def measure_compute(device: torch.device, budget_s: float) -> Compute:
    """Every rate in every precision; all ranks of the node do so at once. `budget_s` is spent on each."""
    rates: dict[str, dict[str, Curve]] = {}
    for precision, dtype in PRECISIONS.items():
        kinds = rates[precision] = {}
        with torch.no_grad():
            for kind, size, units, operation in _operations(device, dtype):
                kinds.setdefault(kind, []).append((size, units / seconds_of(operation, device, budget_s)))
        for kind, size, units, seconds in _experts(device, dtype, budget_s):
            kinds.setdefault(kind, []).append((size, units / seconds))
    tiny = torch.zeros(8, device=device)
    return Compute(torch.get_num_threads(), seconds_of(lambda: tiny + tiny, device, budget_s), rates)


def _operations(device: torch.device, dtype: torch.dtype) -> Iterator[Measured]:
    images = 16 if device.type == "cuda" else 2  # a GPU needs more to be busy

    def random(*shape: int) -> Tensor:
        x = torch.randn(*shape, device=device).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    yield from _products(random, images)
    yield from _convolutions(random, images)
    yield from _elementwise(random, images)
    yield from _resampling(random, images)
    # fp32 whatever the precision, and more than a cache holds.
    parameter = torch.nn.Parameter(torch.randn(1 << 23, device=device))
    parameter.grad = torch.randn_like(parameter)
    yield "adam", 1, parameter.numel(), torch.optim.Adam([parameter]).step


def _products(random: Callable[..., Tensor], images: int) -> Iterator[Measured]:
    for m, k, n in (*((2048 * images, 256, size) for size in CHANNELS), (1024 * images, 1024, 1024)):
        a, b = random(m, k), random(k, n)
        yield "matmul", min(m, k, n), 2 * m * k * n, lambda a=a, b=b: a @ b
    heads, tokens, size = 6, 1008, 64
    q, k, v = (random(images, tokens, heads * size).view(images, tokens, heads, size).transpose(1, 2) for _ in "qkv")
    flops = 4 * images * heads * tokens * tokens * size
    yield "attention", 1, flops, lambda: F.scaled_dot_product_attention(q, k, v)


def _convolutions(random: Callable[..., Tensor], images: int) -> Iterator[Measured]:
    x = random(images, 256, *GRID)
    for channels in CHANNELS:
        g = random(images, channels, *GRID)
        for window in (1, 3):
            weight, kind, padding = random(channels, 256, window, window), f"conv{window}x{window}", window // 2
            flops = 2 * x.numel() * channels * window**2
            yield kind, channels, flops, lambda w=weight, p=padding: F.conv2d(x, w, padding=p)
            yield (
                f"{kind}_backward",
                channels,
                2 * flops,
                lambda g=g, w=weight, p=padding: aten.convolution_backward(
                    g, x, w, None, [1, 1], [p, p], [1, 1], False, [0, 0], 1, [True, True, False]
                ),
            )


def _elementwise(random: Callable[..., Tensor], images: int) -> Iterator[Measured]:
    x, g = random(images, 256, *GRID), random(images, 256, *GRID)
    n = x.numel()
    much, more = (random(2 * images, 256, *GRID) for _ in range(2))  # with the sum, more than most caches hold
    yield "stream", 1, 3 * much.numel() * much.element_size(), lambda: much + more
    yield "gelu", 1, n, lambda: F.gelu(x)
    yield "gelu_backward", 1, n, lambda: aten.gelu_backward(g, x)
    rows_MC, gradient_MC = (t.permute(0, 2, 3, 1).reshape(-1, 256) for t in (x, g))
    scale_C, shift_C = random(256), random(256)
    normed = aten.native_layer_norm(rows_MC, [256], scale_C, shift_C, 1e-5)
    yield "layer_norm", 1, n, lambda: aten.native_layer_norm(rows_MC, [256], scale_C, shift_C, 1e-5)
    yield (
        "layer_norm_backward",
        1,
        n,
        lambda: aten.native_layer_norm_backward(
            gradient_MC, rows_MC, [256], normed[1], normed[2], scale_C, shift_C, [True, True, True]
        ),
    )
    logits_BKhw = random(images, 40, 112, 144).contiguous()
    log_BKhw = logits_BKhw.log_softmax(1)
    yield "softmax", 1, logits_BKhw.numel(), lambda: logits_BKhw.log_softmax(1)
    yield (
        "softmax_backward",
        1,
        logits_BKhw.numel(),
        lambda: aten._log_softmax_backward_data(logits_BKhw, log_BKhw, 1, logits_BKhw.dtype),
    )


def _resampling(random: Callable[..., Tensor], images: int) -> Iterator[Measured]:
    x, g = random(images, 64, *GRID), random(images, 64, *GRID)
    grid = F.affine_grid(torch.eye(2, 3).repeat(images, 1, 1), list(x.shape), align_corners=False).to(x) * 0.98
    yield "grid_sample", 1, x.numel(), lambda: F.grid_sample(x, grid, align_corners=False)
    yield (
        "grid_sample_backward",
        1,
        x.numel(),
        lambda: aten.grid_sampler_2d_backward(g, x, grid, 0, 0, False, [True, True]),
    )
    large_hw = [4 * side for side in GRID]
    small, large = random(images, 16, *GRID), random(images, 16, *large_hw)
    shape = list(small.shape)
    yield "upsample", 1, large.numel(), lambda: F.interpolate(small, large_hw, mode="bilinear", align_corners=False)
    yield (
        "upsample_backward",
        1,
        large.numel(),
        lambda: aten.upsample_bilinear2d_backward(large, large_hw, shape, False, None, None),
    )


def _experts(device: torch.device, dtype: torch.dtype, budget_s: float) -> Iterator[tuple[str, float, float, float]]:
    """Forward and backward of the kernel that `auto` takes, by rows per expert: kind, size, FLOPs, seconds."""
    for channels, hidden in WIDTHS:
        shapes = [(EXPERTS, channels, hidden), (EXPERTS, hidden), (EXPERTS, hidden, channels), (EXPERTS, channels)]
        bank = FFNWeights(*(0.1 * torch.randn(shape, device=device).to(dtype) for shape in shapes))
        for weight in bank:
            weight.requires_grad_()
        for rows in ROWS_PER_EXPERT:
            x_MC = torch.randn(rows * EXPERTS // TOP_K, channels, device=device).to(dtype).requires_grad_()
            gate_MK = torch.rand(len(x_MC), TOP_K, device=device).requires_grad_()
            expert_MK = torch.rand(len(x_MC), EXPERTS, device=device).topk(TOP_K).indices.to(torch.int32)
            kernel = find_kernel("ffn", choose_kernel("ffn", AUTO, x_MC, bank))
            gradient_MC = torch.ones_like(x_MC)

            def forward(kernel=kernel, rows=(x_MC, gate_MK, expert_MK), bank=bank) -> Tensor:
                return kernel(*rows, bank)

            def both(forward=forward, gradient_MC=gradient_MC) -> None:
                forward().backward(gradient_MC)

            flops = rows * EXPERTS * KINDS["ffn"].flops(channels, hidden)
            seconds = seconds_of(forward, device, budget_s)
            backward = max(seconds_of(both, device, budget_s) - seconds, 0.1 * seconds)
            yield f"experts:{channels}x{hidden}", rows, flops, seconds
            yield f"experts_backward:{channels}x{hidden}", rows, 2 * flops, backward
