"""All tokens of an image go to the same experts: T routers that look at the mean of an image's tokens.

The granularity of MLoRE's router (CVPR 2024, arXiv 2403.17749): one vector of gates for each image and task. Its
pixel-wise layers before the mean are left out. Scores, selection, gates and their options are those of the router
`token`; a capacity keeps the first of an image's tokens, whose gates are equal.

Legend: T tasks, N tokens per task, C channels, M images.
"""

from __future__ import annotations

from typing import Optional, Sequence

from torch import Tensor

from fgmoe_dist.experts.routers.token import TokenRouter


class ImageRouter(TokenRouter):
    def _rows(self, x_TNC: Tensor, images: int) -> Tensor:
        return x_TNC.unflatten(1, (images, x_TNC.shape[1] // max(1, images))).mean(2)

    def _for_tokens(self, decided: Sequence[Optional[Tensor]], tokens: int) -> list[Optional[Tensor]]:
        return [None if each is None else _repeat(each, tokens) for each in decided]


def _repeat(value_TMX: Tensor, tokens: int) -> Tensor:
    """`value_TNX`: an image's value for each of its tokens."""
    images = value_TMX.shape[1]
    return value_TMX[:, :, None].expand(-1, -1, tokens // max(1, images), -1).flatten(1, 2)
