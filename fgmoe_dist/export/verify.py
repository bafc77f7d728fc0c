"""Compares an exported file, run in a fresh process without DeepSpeed, with the model it was made from."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fgmoe_dist.errors import UserError
from fgmoe_dist.model import Model


class Difference(NamedTuple):
    """Of a task's output: the greatest difference anywhere, and the greatest magnitude to see it against."""

    greatest: float
    magnitude: float

    @property
    def relative(self) -> float:
        share = self.greatest / self.magnitude if self.magnitude else self.greatest
        return math.inf if math.isnan(share) else share  # NaN is below no tolerance, and would be passed over by `max`


def differences(model: Model, format: str, path: Path) -> dict[str, Difference]:
    """By task, over one image and over three at a time.

    The images are noise, which sends neighbouring tokens to different experts. RuntimeError with what the process said
    if the file does not run, UserError if there is no room for the images in the folder of temporary files.
    """
    images_B3HW = torch.randn(3, 3, *model.encoder.image_size_hw, generator=torch.Generator().manual_seed(0))
    batches = [images_B3HW[:1], images_B3HW]
    found = _run_apart(format, path, [batch.numpy() for batch in batches])
    result: dict[str, Difference] = {}
    for number, batch in enumerate(batches):
        with torch.no_grad():
            predictions = model(batch).predictions
        for task, expected in predictions.items():
            expected, got = expected.numpy(), found[f"{number}/{task}"]
            assert got.shape == expected.shape and got.dtype == np.float32, f"{task}: {got.dtype} {got.shape}"
            here = Difference(float(np.abs(got - expected).max()), float(np.abs(expected).max()))
            result[task] = max(result.get(task, here), here, key=lambda difference: difference.relative)
    return result


def _run_apart(format: str, path: Path, batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "batches.npz"), Path(folder, "outputs.npz")
        try:
            np.savez(given, **{str(number): batch for number, batch in enumerate(batches)})
        except OSError as error:
            raise UserError(f"TMPDIR {folder}: cannot be written ({error}); set TMPDIR to a folder with room") from None
        command = [sys.executable, "-m", "fgmoe_dist.export.run_file", format, str(path), str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the exported {format} file does not run by itself:\n{done.stderr[-4000:]}")
        with np.load(found) as arrays:
            return {name: arrays[name] for name in arrays}
