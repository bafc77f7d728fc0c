"""Predictions as files: `FOLDER/<task>/<id>.png` for whole numbers, `.npy` for floating-point ones.

What their values mean is for each task to say (docs/contracts.md). Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from fgmoe_dist.data.arrays import read_array
from fgmoe_dist.data.pictures import read_picture, to_8_bits
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_atomically
from fgmoe_dist.labels import BinaryMap, ClassMap
from fgmoe_dist.labels.storage import write_npy
from fgmoe_dist.tasks import Task

CURE = "save it again"


def write_predictions(folder: Path, id_: str, predictions: Mapping[str, np.ndarray]) -> None:
    """An image's predictions by task: uint8 and uint16 as `.png`, others as `.npy`; each whole, or CannotWrite."""
    for name, prediction in predictions.items():
        suffix, data = _encoded(prediction)
        write_atomically(folder / name / f"{id_}{suffix}", data)


def _encoded(prediction: np.ndarray) -> tuple[str, bytes]:
    if np.issubdtype(prediction.dtype, np.unsignedinteger):
        return ".png", cv2.imencode(".png", prediction)[1].tobytes()
    return ".npy", write_npy(prediction)


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
    array = read_array(paths[0], CURE, None) if paths[0].suffix == ".npy" else _pixels(paths[0], task)
    return task.read(array, f"prediction {paths[0]}")


def _pixels(path: Path, task: Task) -> np.ndarray:
    """A picture's values as the kind of label has them; what has another shape or type is left for the meter to refuse.

    Class numbers are as they are stored, of a palette the indices. Probabilities are shades of black and white, of a
    palette its colours', from 0 to 255.
    """
    picture = read_picture(path, CURE, None)
    if picture.kind == "colour" or picture.is_transparent:
        return np.dstack([picture.values] if picture.alpha_HW is None else [picture.values, picture.alpha_HW])
    if isinstance(task.label, ClassMap):
        return picture.numbers()
    if not isinstance(task.label, BinaryMap):
        return picture.values
    shade_HW, full = picture.brightness()
    if full == 1:
        return shade_HW.astype(bool)
    return to_8_bits(shade_HW, full) if full < 255 else shade_HW
