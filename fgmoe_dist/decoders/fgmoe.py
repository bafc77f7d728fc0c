"""The whole model: frozen encoder -> aggregator -> a mixer a task -> FGMoE blocks -> a head a task.

Legend: B images, C channels, h x w decoder grid, H x W input, T tasks, N = B h w tokens, K outputs of a task, L blocks,
E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fgmoe_dist.config import Config
from fgmoe_dist.decoders.parts.aggregator import Aggregator
from fgmoe_dist.decoders.parts.block import FGMoEBlock
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.decoders.parts.mixer import deformable_mixer
from fgmoe_dist.encoders.frozen import FrozenEncoder, create_encoder
from fgmoe_dist.experts.balance import BalanceTerms, auxiliary_losses
from fgmoe_dist.experts.routers import Router
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.tasks import DatasetInfo, Task, create_tasks


@dataclass
class Output:
    """What a forward pass gives: predictions by task name, and the balance terms of every block."""

    predictions: dict[str, Tensor]
    balance: list[BalanceTerms]


class FGMoE(nn.Module):
    def __init__(self, encoder: FrozenEncoder, tasks: list[Task], config: Config):
        super().__init__()
        decoder = config.decoder
        channels, count = decoder.channels, len(tasks)
        self.tasks, self.stride = tasks, decoder.stride
        self.encoder = encoder
        self.aggregator = Aggregator(encoder.channels, channels, count, decoder.adapter_rank, decoder.level_weights)
        self.mixers = nn.ModuleList(deformable_mixer(channels, decoder.mixer_depth) for _ in tasks)
        self.blocks = nn.ModuleList(
            FGMoEBlock(count, channels, config.experts, config.parallel.ep_size, block, config.run.seed)
            for block in range(decoder.blocks)
        )
        self.heads = nn.ModuleList(Head(channels, task.channels) for task in tasks)

    def forward(self, image_B3HW: Tensor | list[Tensor]) -> Output:
        """A list is taken for the encoder's levels of the images, which a cache has kept."""
        size_hw = self.encoder.image_size_hw
        grid_hw = (size_hw[0] // self.stride, size_hw[1] // self.stride)
        levels = image_B3HW if isinstance(image_B3HW, list) else self.encoder(image_B3HW)
        a_BChw, own_TBChw = self.aggregator(levels, grid_hw)
        u_TBChw = torch.stack([mixer(own) for mixer, own in zip(self.mixers, own_TBChw)])
        u_TNC, a_NC, balance = _to_tokens(u_TBChw), _to_tokens(a_BChw), []
        images = a_BChw.shape[0]  # `len` would be a constant in an exported model
        for block in self.blocks:
            u_TNC, *terms = block(u_TNC, a_NC, images)
            balance.append(BalanceTerms(*terms))
        features = u_TNC.unflatten(1, (images, *grid_hw)).permute(0, 1, 4, 2, 3)
        predictions = {task.name: head(x, size_hw) for task, head, x in zip(self.tasks, self.heads, features)}
        return Output(predictions, balance)

    @torch.no_grad()
    def predict(self, image_B3HW: Tensor) -> dict[str, list[np.ndarray]]:
        """Per task, one array an image, as docs/contracts.md describes predictions, at the input's size."""
        predictions = self(image_B3HW).predictions
        return {task.name: [task.predict(p_KHW) for p_KHW in predictions[task.name]] for task in self.tasks}

    def update_router_biases(self, load_LTE: Tensor) -> None:
        """After an optimiser step, with the load of all ranks in it. Nothing without `experts.bias_update_rate`."""
        routers = (module for module in self.modules() if isinstance(module, Router))
        for router, load_TE in zip(routers, load_LTE):
            router.after_step(load_TE)


def _to_tokens(x: Tensor) -> Tensor:
    """`[..., B, C, h, w]` to `[..., B h w, C]`."""
    return x.movedim(-3, -1).flatten(-4, -2)


class BalanceLosses(NamedTuple):
    """The losses that every run has, mean over blocks."""

    experts: Tensor
    devices: Tensor
    z: Tensor


class Balance(NamedTuple):
    """Balance losses, and what the experts were asked for by the tokens of all ranks."""

    losses: BalanceLosses
    load_LTE: Tensor  # slots that chose each expert
    dropped_LT: Tensor  # of these, slots that found their expert full


def balance_losses(balance: list[BalanceTerms], groups: int = 1) -> Balance:
    """`auxiliary_losses` without the weights. A collective."""
    losses, counts = auxiliary_losses(balance, Experts(), groups)
    kinds = (losses[f"experts/{name}_loss"][1] for name in ("balance", "device_balance", "z"))
    return Balance(BalanceLosses(*kinds), counts["load"], counts["dropped"])


def create_model(config: Config, info: DatasetInfo) -> FGMoE:
    """The model that `config` describes for the data set `info`; the same weights on every rank, for every layout."""
    torch.manual_seed(config.run.seed)
    tasks = create_tasks(config.tasks, info, config.train.edge_positive_weight)
    encoder = create_encoder(config)
    torch.manual_seed(config.run.seed)  # whatever the encoder's construction drew
    model = FGMoE(encoder, tasks, config)
    if config.train.activation_checkpointing:
        from fairscale.nn import checkpoint_wrapper

        model.blocks = nn.ModuleList(checkpoint_wrapper(block) for block in model.blocks)
    return model
