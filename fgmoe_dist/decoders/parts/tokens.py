"""Maps as tokens and back.

Legend: B images, C channels, h x w grid, N = B h w tokens, image after image.
"""

from __future__ import annotations

from torch import Tensor


def to_tokens(x: Tensor) -> Tensor:
    """`[..., B, C, h, w]` to `[..., N, C]`."""
    return x.movedim(-3, -1).flatten(-4, -2)


def to_maps(x: Tensor, images: int, grid_hw: tuple[int, int]) -> Tensor:
    """`[..., N, C]` to `[..., B, C, h, w]`."""
    return x.unflatten(-2, (images, *grid_hw)).movedim(-1, -3)
