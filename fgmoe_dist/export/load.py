"""Loads what `fgmoe export --format safetensors` wrote, with neither DeepSpeed nor a process group.

model, config, state = load_exported("model.safetensors")
predictions = model(image_B3HW).predictions
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Iterator

from safetensors import SafetensorError, safe_open
from torch import nn

from fgmoe_dist.checkpoints.folder import WHOLE, CheckpointState
from fgmoe_dist.config import Config, build_config
from fgmoe_dist.errors import UserError

if TYPE_CHECKING:
    from fgmoe_dist.model import Model

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
    with _deepspeed_or_stand_in():
        from fgmoe_dist.encoders.weights import load_strictly
        from fgmoe_dist.model import create_model
    config = build_config(state.changed_config(WHOLE, FROM_FILE), origin=str(path))
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


@contextlib.contextmanager
def _deepspeed_or_stand_in() -> Iterator[None]:
    """Lets the model's modules be imported where DeepSpeed is not installed.

    The layer of routed experts derives from DeepSpeed's `MoE`, since that is how its engine recognises experts, and
    asks it for groups of ranks. One process has no engine and no groups: there an empty base class serves. The
    stand-ins are gone afterwards, so that whoever needs DeepSpeed still misses it.
    """
    from fgmoe_dist.ranks import prepare_deepspeed

    try:
        prepare_deepspeed()
    except ImportError:
        names = ("deepspeed", "deepspeed.moe", "deepspeed.moe.layer", "deepspeed.utils")
        before = {name: sys.modules[name] for name in names if name in sys.modules}
        stand_ins = {name: ModuleType(name) for name in names}
        stand_ins["deepspeed.moe.layer"].MoE = nn.Module
        stand_ins["deepspeed.utils"].groups = None
        sys.modules.update(stand_ins)
        try:
            yield
        finally:
            for name in names:
                del sys.modules[name]
            sys.modules.update(before)
    else:
        yield
