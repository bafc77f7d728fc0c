"""Runs an exported file where DeepSpeed cannot be imported, as a process of its own.

    python -m fgmoe_dist.export.run_file FORMAT FILE BATCHES.npz OUTPUTS.npz

BATCHES holds arrays `[B, 3, H, W]`; OUTPUTS gets one array a batch and task, named BATCH/TASK. Also an example of how
to run each format: pt2 needs torch alone, ONNX onnxruntime alone.
"""

from __future__ import annotations

import sys
from typing import Callable

import numpy as np

from fgmoe_dist import plugins

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def open_safetensors(path: str) -> Run:
    import torch

    from fgmoe_dist.export.load import load_exported

    model, *_ = load_exported(path)
    return lambda image: {name: p.detach().numpy() for name, p in model(torch.from_numpy(image)).predictions.items()}


def open_pt2(path: str) -> Run:
    import torch

    model = torch.export.load(path).module()
    return lambda image: {name: p.detach().numpy() for name, p in model(torch.from_numpy(image)).items()}


def open_onnx(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image})))


OPENERS = {"safetensors": open_safetensors, "pt2": open_pt2, "onnx": open_onnx}


def main(format: str, file: str, batches: str, outputs: str) -> None:
    sys.modules["deepspeed"] = None  # its import now fails
    if format == "safetensors":  # built by our own modules, perhaps of a plug-in's decoder
        plugins.load()
    run = OPENERS[format](file)
    with np.load(batches) as arrays:
        found = {f"{batch}/{task}": value for batch in arrays for task, value in run(arrays[batch]).items()}
    np.savez(outputs, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
