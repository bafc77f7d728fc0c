"""Predictions as files: `FOLDER/<task>/<id>.png` for whole numbers, `.npy` for floating-point ones.

What their values mean is for each task to say (docs/contracts.md). Nothing is unpickled.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fgmoe_dist.errors import UserError, first_line
from fgmoe_dist.files import write_atomically
from fgmoe_dist.tasks import Task


def write_predictions(folder: Path, id_: str, predictions: Mapping[str, np.ndarray]) -> None:
    """An image's predictions by task: uint8 and uint16 as `.png`, others as `.npy`; each whole, or CannotWrite."""
    for name, prediction in predictions.items():
        suffix, data = _encoded(prediction)
        write_atomically(folder / name / f"{id_}{suffix}", data)


def _encoded(prediction: np.ndarray) -> tuple[str, bytes]:
    if np.issubdtype(prediction.dtype, np.unsignedinteger):
        return ".png", cv2.imencode(".png", prediction)[1].tobytes()
    stream = io.BytesIO()
    np.save(stream, prediction, allow_pickle=False)
    return ".npy", stream.getvalue()


class PredictionWriter:
    """Saves whatever `evaluate` predicts."""

    def __init__(self, folder: Path):
        self.folder = folder

    def update(self, sample: Mapping, predictions: Mapping[str, np.ndarray]) -> None:
        write_predictions(self.folder, sample["id"], predictions)


def read_prediction(folder: Path, task: Task, id_: str) -> np.ndarray:
    """The saved prediction of a task for an image, as its meter takes it.

    Raises:
        UserError: no such file, one of each kind, an unreadable one, or one whose values cannot be meant.
    """
    paths = [path for suffix in (".png", ".npy") if (path := folder / task.name / f"{id_}{suffix}").is_file()]
    if len(paths) != 1:
        fault = "both exist: remove one" if paths else "missing: predict it, or name the images with --images"
        raise UserError(f"prediction {folder / task.name / id_}.png or .npy is {fault}")
    try:
        array = _read_npy(paths[0]) if paths[0].suffix == ".npy" else _read_png(paths[0])
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f"prediction {paths[0]} cannot be read ({first_line(error)}); save it again") from error
    return task.read(array, f"prediction {paths[0]}")


def _read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file; nothing is unpickled, and no archive is opened as `np.load` would."""
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_png(path: Path) -> np.ndarray:
    """Values as stored: of a palette image the indices, not the colours."""
    with Image.open(path) as image:
        return np.array(image)
