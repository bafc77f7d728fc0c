"""A data set of one's own: a YAML file says where the images and labels lie and what their values mean.

`configs/datasets/example.yaml` shows every key. Whatever the file describes goes through the same builder, checks and
shards as the field's archives, with any subset of the six tasks. A label file that is not there is a label that the
image lacks; it gives no loss and no score.

Shapes: H, W native size; C = 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Union

import cv2
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fgmoe_dist.data import codec
from fgmoe_dist.data.codec import IGNORE
from fgmoe_dist.data.layouts import Layout, named, read_id_list, read_picture, region_boundary, thin
from fgmoe_dist.errors import UserError

BOUNDARY_MAX_DIST = 0.0075  # PASCAL-Context's
Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
Value = Annotated[int, Field(ge=0, le=65535)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Files(_Part):
    """Where the file of an image lies: a pattern with {id}, or several, of which the first that exists counts."""

    file: Union[str, list[str]]

    @field_validator("file")
    @classmethod
    def _has_id(cls, value: Union[str, list[str]]) -> Union[str, list[str]]:
        if not value or any("{id}" not in pattern for pattern in _listed(value)):
            raise ValueError("write {id} where the image's id stands, as in labels/{id}.png")
        return value

    def find(self, root: Path, id_: str) -> Path | None:
        """The file of an image, or None if there is none."""
        paths = (root / pattern.replace("{id}", id_) for pattern in _listed(self.file))
        return next((path for path in paths if path.is_file()), None)

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        """The stored form of the label in a file, by key: `task`, and what else comes of it."""
        raise NotImplementedError


class Classes(Files):
    """A picture of class numbers, as `semseg` and `human_parts` are."""

    classes: Union[list[str], dict[str, Union[Value, list[Value]]]]
    first: Value = 0
    ignore: Union[list[Value], Literal["others"]] = [255]

    @field_validator("classes")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not 1 <= len(value) <= IGNORE:
            raise ValueError(f"name 1 to {IGNORE} classes")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def table(self) -> np.ndarray:
        """int16 [65536]: the class of a value in the file, 255 ignored, -1 refused."""
        table = np.full(65536, IGNORE if self.ignore == "others" else -1, np.int16)
        if self.ignore != "others":
            table[self.ignore] = IGNORE
        for number, name in enumerate(self.classes):
            values = self.classes[name] if isinstance(self.classes, dict) else self.first + number
            table[values] = number
        return table

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        value_HW = _one_channel(path)
        label_HW = self.table()[value_HW]
        if (label_HW < 0).any():
            raise UserError(
                f"{path} holds value {value_HW[label_HW < 0][0]}, which is no class: name it under classes or ignore"
            )
        return {task: label_HW.astype(np.uint8)}


class Mask(Files):
    """`sal`: a picture that is bright on what stands out, or of labels 0, 1 and 255 = ignore."""

    encoding: Literal["mask", "labels"] = "mask"

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        value_HW = _one_channel(path)
        if self.encoding == "mask":
            return {task: (value_HW > np.iinfo(value_HW.dtype).max // 2).astype(np.uint8)}
        strange = np.setdiff1d(value_HW, (0, 1, IGNORE))
        if strange.size:
            raise UserError(f"{path} holds value {strange[0]}: encoding labels has 0, 1 and 255; is it a mask?")
        return {task: value_HW.astype(np.uint8)}


class Edges(Mask):
    """`edge`: a mask, labels, or a map of region numbers whose boundaries are the edges."""

    encoding: Literal["mask", "labels", "regions"] = "mask"  # type: ignore[assignment]
    max_dist: float = Field(BOUNDARY_MAX_DIST, gt=0, lt=1)

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        if self.encoding == "regions":  # as PASCAL-Context has them
            region_HW = _one_channel(path)
            edge_HW = thin(cv2.Laplacian(region_HW.astype(np.float64), cv2.CV_64F) != 0)
            return {task: edge_HW, "boundary": thin(region_boundary(region_HW))}
        edge_HW = super().read(task, path)[task]
        return {task: edge_HW, "boundary": thin(edge_HW == 1)}


class Depth(Files):
    """`depth`: an .npy array or a picture of 8 or 16 bits, times `unit` metres."""

    unit: float = Field(1.0, gt=0)
    invalid: list[float] = [0]

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        value_HW = _array(path) if path.suffix == ".npy" else _one_channel(path)
        valid_HW = np.isfinite(value_HW) & (value_HW > 0) & ~np.isin(value_HW, self.invalid)
        return {task: np.where(valid_HW, value_HW * self.unit, 0).astype(np.float32)}


class Normals(Files):
    """`normals`: RGB with n = 2x/255 - 1 and (0, 0, 0) = invalid, or an .npy of vectors, NaN or zero = invalid.

    `axes` says what the file's three channels are, seen from the camera: x right, y down or up as one likes, but the
    same everywhere, for a flip turns x around.
    """

    axes: tuple[Axis, Axis, Axis] = ("x", "y", "z")

    @field_validator("axes")
    @classmethod
    def _each_once(cls, value: tuple[Axis, Axis, Axis]) -> tuple[Axis, Axis, Axis]:
        if sorted(axis[-1] for axis in value) != ["x", "y", "z"]:
            raise ValueError("name each of x, y, z once")
        return value

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        order = [[axis[-1] for axis in self.axes].index(axis) for axis in "xyz"]
        minus = np.array([self.axes[channel].startswith("-") for channel in order])
        if path.suffix == ".npy":
            return {task: self._vectors(path)[..., order] * np.where(minus, np.float32(-1), np.float32(1))}
        rgb_HWC = read_picture(path, "RGB")
        ordered_HWC = rgb_HWC[..., order]
        return {task: codec.mark_invalid_normals(np.where(minus, 255 - ordered_HWC, ordered_HWC), rgb_HWC.any(-1))}

    @staticmethod
    def _vectors(path: Path) -> np.ndarray:
        """float32 [H, W, 3] of unit length, NaN where the file has no direction."""
        vector_HWC = _array(path).astype(np.float32)
        if vector_HWC.ndim != 3 or vector_HWC.shape[-1] != 3:
            raise UserError(f"{path} has shape {vector_HWC.shape}, not [H, W, 3]: save one vector a pixel")
        length_HW1 = np.linalg.norm(vector_HWC, axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(length_HW1 > 1e-6, vector_HWC / length_HW1, np.float32(np.nan))


class Tasks(_Part):
    semseg: Classes | None = None
    human_parts: Classes | None = None
    sal: Mask | None = None
    normals: Normals | None = None
    depth: Depth | None = None
    edge: Edges | None = None

    def given(self) -> dict[str, Any]:
        """The tasks that are described, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}


class Description(_Part):
    """The whole YAML file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    root: str = "."
    image: Files
    splits: dict[str, str] = Field(min_length=1)
    tasks: Tasks


class OwnLayout(Layout):
    """The reader of a described data set.

    Args:
        path: the YAML file.
        root: the data set's folder; by default the file's `root`, which is relative to the file.

    Raises:
        UserError: the file cannot be read, says something impossible, or names a task none of whose files exist.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None):
        self.path = Path(path)
        self.description = _read_description(self.path)
        self.described = self.description.tasks.given()
        self.dataset = self.description.name
        self.tasks = tuple(self.described)
        self.classes = {
            task: self.described[task].names for task in ("semseg", "human_parts") if task in self.described
        }
        edges = self.description.tasks.edge
        self.boundary_max_dist = edges.max_dist if edges else BOUNDARY_MAX_DIST
        self.splits = tuple(self.description.splits)
        super().__init__(root if root is not None else self.path.parent / self.description.root)

    def ids(self, split: str) -> list[str]:
        self._check_split(split)
        return read_id_list(self.root / self.description.splits[split])

    def image_path(self, id_: str) -> Path:
        pattern = _listed(self.description.image.file)[0]
        return self.description.image.find(self.root, id_) or self.root / pattern.replace("{id}", id_)

    def files(self, id_: str) -> list[Path]:
        labels = (part.find(self.root, id_) for part in self.described.values())
        return [self.image_path(id_), *(path for path in labels if path)]

    def meaning(self) -> str:
        return self.description.model_dump_json(exclude={"root"})

    def labels(self, id_: str) -> dict[str, np.ndarray]:
        labels = {}
        for task, part in self.described.items():
            path = part.find(self.root, id_)
            if path is not None:
                labels |= part.read(task, path)
        return labels

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise UserError(f"data set root {self.root} is no folder: correct root in {self.path}, or give --root")
        ids = [id_ for split in self.splits for id_ in self.ids(split)]
        for task, part in self.described.items():
            if not any(part.find(self.root, id_) for id_ in ids):
                raise UserError(
                    f"{self.path}: tasks.{task}.file {part.file}: no image of any split has such a file below "
                    f"{self.root}; correct the pattern, or leave the task out"
                )


def _read_description(path: Path) -> Description:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"data set file {path} cannot be read ({' '.join(str(error).split())})") from error
    try:
        description = Description.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(_explain(entry) for entry in error.errors())) from error
    if not description.tasks.given():
        raise UserError(f"{path}: tasks is empty; describe one of {', '.join(Tasks.model_fields)}")
    return description


def _explain(entry: Any) -> str:
    where = ".".join(str(part) for part in entry["loc"] if part not in ("str", "list[str]"))
    if entry["type"] == "extra_forbidden":
        return f"{where}: no such key; configs/datasets/example.yaml shows all"
    return f"{where}: {entry['msg'].removeprefix('Value error, ')}"


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _array(path: Path) -> np.ndarray:
    with named(path):
        return np.load(path, allow_pickle=False)


def _one_channel(path: Path) -> np.ndarray:
    """uint8 or uint16 [H, W] as stored: of a palette picture the indices."""
    value_HW = read_picture(path, None)
    if value_HW.dtype == np.int32:  # how Pillow reads some 16-bit pictures
        value_HW = value_HW.astype(np.uint16)
    if value_HW.dtype == bool:
        value_HW = value_HW.astype(np.uint8) * np.uint8(255)
    if value_HW.ndim != 2 or value_HW.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} is {value_HW.dtype} {value_HW.shape}, not one channel of 8 or 16 bits; replace it")
    return value_HW
