"""A tiny trained-looking model, and what a checkpoint says of it, without a training run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fgmoe_dist.checkpoints.folder import WHOLE, CheckpointState
from fgmoe_dist.config import Config, build_config
from tests.runs import SETTINGS

TASKS = ["semseg", "depth"]


def tiny_model(**experts: Any):
    """The model and its `CheckpointState`, as `load_model(..., kernel="reference")` gives them.

    Every weight is moved from its first value: mixers sample off the grid, experts and gates differ.
    """
    from fgmoe_dist.model import create_model

    config = build_config(
        {
            **SETTINGS,
            "tasks": TASKS,
            "encoder": {**SETTINGS["encoder"], "taps": [0, 1]},  # the blocks behind are cut off
            "decoder": {**SETTINGS["decoder"], "blocks": 1},
            "experts": {**SETTINGS["experts"], "count": 3, "split": 1, "top_k": 2, **experts},
        }
    )
    state = checkpoint_state(config)
    return moved(
        create_model(build_config(state.changed_config(WHOLE, {"experts": {"kernel": "reference"}})), state)
    ), state


def checkpoint_state(config: Config) -> CheckpointState:
    """What a checkpoint of a run of `config` on rooms would say, after three steps on one rank."""
    return CheckpointState(
        step=3, config=config.model_dump(mode="json"), tasks=TASKS, classes={"semseg": ["wall", "floor", "chair"]},
        boundary_max_dist=0.01, encoder_checksum="e", world=1, ep_size=1, zero_stage=1,
    )  # fmt: skip


def moved(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode, every number of its state a little off its first value."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.05 * torch.randn(value.shape, generator=generator)
    return model.eval()
