"""Loads what `fgmoe export --format safetensors` wrote, with neither DeepSpeed nor a process group.

model, config, state = load_exported("model.safetensors")
predictions = model(image_B3HW).predictions
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fgmoe_dist.checkpoints.folder import WHOLE, CheckpointState
from fgmoe_dist.config import Config, build_config
from fgmoe_dist.encoders.weights import load_strictly
from fgmoe_dist.errors import UserError
from fgmoe_dist.model import Model, create_model

ABOUT = "fgmoe"  # the entry of a file's metadata, JSON, in every format

# The file has the encoder's weights, so none are looked up; and all of them in fp32.
FROM_FILE = {"encoder": {"weights": "none", "precision": "fp32"}, "train": {"precision": "fp32"}}


def load_exported(path: str | Path) -> tuple[Model, Config, CheckpointState]:
    """The exported model in fp32, in evaluation mode, with the configuration that it is built from.

    `state.config` is what it was trained with. UserError if the file is damaged or no exported model.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None
    state = _state(path, about)
    config = build_config(state.changed_config(WHOLE, FROM_FILE), str(path), defined_tasks=state.definitions)
    model = create_model(config, state)
    load_strictly(
        model,
        {_full_name(name): value for name, value in tensors.items()},
        f"{path}: does not fit the configuration it carries",
    )
    return model.eval(), config, state


def _full_name(name: str) -> str:
    """A file names the decoder's weights as a checkpoint does."""
    return name if name.startswith("encoder.") else f"decoder.{name}"


def _state(path: Path, about: Any) -> CheckpointState:
    try:
        return CheckpointState(**about["checkpoint"])
    except (TypeError, KeyError):
        raise UserError(f"{path}: is no model that `fgmoe export --format safetensors` of this version wrote") from None
