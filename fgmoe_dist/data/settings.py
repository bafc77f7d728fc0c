"""The `data` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fgmoe_dist.settings import Section

Side = Annotated[int, Field(le=65536)]  # pixels
Scale = Annotated[float, Field(ge=0.01, le=100)]


class Data(Section):
    train: str = Field("", description="training shards: a folder, a brace pattern or URLs")
    val: str = Field("", description="validation shards, read once each evaluation")
    image_size: tuple[Side, Side] = Field(
        (448, 576), description="[height, width] that training crops to, evaluation pads to"
    )
    workers: int = Field(2, ge=0, le=1024, description="loader processes a rank; 0 reads in the training process")
    augment: bool = Field(
        True, description="scale, crop, flip and photometric distortion; off: centred padding or crop only"
    )
    scale_range: tuple[Scale, Scale] = Field(
        (0.5, 2.0), description="[lowest, highest] random scale of the training crop"
    )
    views: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="fixed augmented views of each image, one an epoch in turn; 0: augmented anew each time",
    )
    max_bad_samples: int = Field(0, ge=0, description="unreadable samples a rank passes over, with a warning each")
