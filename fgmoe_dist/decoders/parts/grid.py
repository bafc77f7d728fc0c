"""Settings of decoders whose features lie on one grid over the input."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fgmoe_dist.decoders.base import DecoderSettings, Surroundings


class GridSettings(DecoderSettings):
    channels: int = Field(256, ge=8, description="C, the width of every task's feature")
    stride: int = Field(4, ge=1, description="pixels of the input a decoder token stands for, each way")

    def grid(self, size_hw: Sequence[int]) -> tuple[int, int]:
        """h x w of the decoder's tokens for an input of H x W."""
        return size_hw[0] // self.stride, size_hw[1] // self.stride

    def conflicts(self, around: Surroundings) -> list[str]:
        size = list(around.image_size)
        if not any(side % self.stride for side in size):
            return []
        return [f"data.image_size={size} is not a multiple of decoder.stride={self.stride}; change one of them"]
