"""Writes a trained model as one file that runs without DeepSpeed.

All formats hold the whole model, encoder included, in fp32, and map normalised images `[B, 3, H, W]` of the network's
input size to the raw output of each task `[B, K, H, W]`, fp32. Routed experts stay routed: the reference kernel's loop
looks up each expert's rows, so that an exported model computes k experts a token and not all of them.
"""

from __future__ import annotations

import importlib
import io
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fgmoe_dist import __version__
from fgmoe_dist.checkpoints.folder import CheckpointState
from fgmoe_dist.config import Config
from fgmoe_dist.errors import UserError
from fgmoe_dist.export.load import ABOUT
from fgmoe_dist.files import to_json
from fgmoe_dist.model import Model

# An ONNX file is one protocol buffer, which ends at 2 GiB.
ONNX_LIMIT_BYTES = 2**31 - 2**24

Write = Callable[[Path], object]


def about(model: Model, state: CheckpointState) -> dict[str, Any]:
    """What a file says of itself, in its metadata."""
    return {
        "version": __version__,
        "input": {
            "shape": ["B", 3, *model.encoder.image_size_hw],
            "mean": model.encoder.mean,
            "std": model.encoder.std,
        },
        "outputs": {task.name: task.channels for task in model.tasks},
        "checkpoint": asdict(state),
    }


def check_can_export(model: Model, config: Config, format: str) -> None:
    """UserError where a format cannot hold this model, or a package is missing."""
    if format != "onnx":
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"--format onnx: needs the package {package}; pip install 'fgmoe_dist[export]', or use --format pt2"
            ) from None
    if config.routed.blocks and config.experts.capacity_factor:
        raise UserError(
            "--format onnx: ONNX has no stable sort, which experts.capacity_factor needs; use pt2 or safetensors"
        )
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if size > ONNX_LIMIT_BYTES:
        raise UserError(
            f"--format onnx: an ONNX file ends at 2 GiB, this model has {size / 2**30:.1f}; use pt2 or safetensors"
        )


def convert_model(model: Model, state: CheckpointState, format: str) -> Write:
    """`model`, which is in fp32 on the CPU with the reference kernel, in one of `FORMATS`: what writes it to a path.

    Apart, since that alone can fail for want of room: with OSError or SafetensorError.
    """
    with torch.no_grad():
        return CONVERTERS[format](model, to_json(about(model, state)))


class _Predictor(nn.Module):
    """The model as exporters want it: tensor in, dictionary of tensors out."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.model(image).predictions


def _to_safetensors(model: Model, about: str) -> Write:
    tensors = {name.removeprefix("decoder."): value.contiguous() for name, value in model.state_dict().items()}
    return lambda path: save_file(tensors, path, {ABOUT: about})


def _to_pt2(model: Model, about: str) -> Write:
    # In memory first: where its own writer finds no room, torch aborts the whole process on closing it.
    buffer = io.BytesIO()
    torch.export.save(_trace(model), buffer, extra_files={f"{ABOUT}.json": about})
    return lambda path: path.write_bytes(buffer.getbuffer())


def _to_onnx(model: Model, about: str) -> Write:
    names = [task.name for task in model.tasks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own calls
        converted = torch.onnx.export(_trace(model), input_names=["image"], output_names=names, verbose=False)
    converted.model.metadata_props[ABOUT] = about
    return lambda path: converted.save(path, external_data=False)


CONVERTERS: dict[str, Callable[[Model, str], Write]] = {
    "safetensors": _to_safetensors,
    "pt2": _to_pt2,
    "onnx": _to_onnx,
}


def _trace(model: Model) -> torch.export.ExportedProgram:
    """For any number of images; two stand for it, as one would be taken for a constant."""
    image = torch.zeros(2, 3, *model.encoder.image_size_hw)
    return torch.export.export(_Predictor(model), (image,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
