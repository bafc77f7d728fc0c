"""The whole model: a frozen encoder and the decoder that is trained on its levels.

Legend: B images, H x W input, K outputs of a task.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fgmoe_dist.config import Config
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import Decoder, Levels, Output
from fgmoe_dist.encoders.frozen import FrozenEncoder, create_encoder
from fgmoe_dist.tasks import DatasetInfo, Task, create_tasks


class Model(nn.Module):
    """Images to predictions. Only the decoder is trained, saved and given to an engine."""

    def __init__(self, encoder: FrozenEncoder, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @property
    def tasks(self) -> list[Task]:
        return self.decoder.tasks

    def forward(self, image_B3HW: Tensor) -> Output:
        """Predictions of normalised images of the encoder's input size."""
        return self.decoder(self.encoder(image_B3HW))

    @torch.no_grad()
    def predict(self, image_B3HW: Tensor) -> dict[str, list[np.ndarray]]:
        """Per task, one array per image, as docs/contracts.md describes predictions, at the input's size."""
        predictions = self(image_B3HW).predictions
        return {task.name: [task.predict(p_KHW) for p_KHW in predictions[task.name]] for task in self.tasks}


def create_decoder(config: Config, levels: Levels, tasks: list[Task]) -> Decoder:
    """The decoder that `config` describes on such levels; the same weights on every rank, for every layout."""
    torch.manual_seed(config.run.seed)
    return DECODERS[config.decoder.kind](config.decoder, levels, tasks, config.surroundings())


def create_model(config: Config, info: DatasetInfo) -> Model:
    """The model that `config` describes for the data set `info`."""
    tasks = create_tasks(config.tasks, info, config.train.edge_positive_weight, config.train.class_balance)
    encoder = create_encoder(config)
    return Model(encoder, create_decoder(config, Levels(encoder.channels, encoder.strides), tasks))
