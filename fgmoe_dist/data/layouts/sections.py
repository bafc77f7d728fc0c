"""What a described data set says of one task: where its files lie and what their values mean, a section for each kind.

Each section reads a file into the stored form of its kind of label (`fgmoe_dist/labels`). The six known tasks have
sections of their own where their labels mean one thing only; any other task names its kind. A kind of label that files
can hold is a subclass of `Section` here, and a line in `SECTIONS`.

Shapes: H, W native size; C components of a vector.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

import cv2
import numpy as np
from pydantic import Field, field_validator, model_serializer, model_validator

from fgmoe_dist.data.arrays import as_float32
from fgmoe_dist.data.label_files import (
    colours,
    components,
    directions,
    is_array,
    marks,
    mask,
    mask_labels,
    measurements,
    whole_numbers,
)
from fgmoe_dist.data.layouts.base import thin
from fgmoe_dist.data.layouts.places import fields
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import ClassMap
from fgmoe_dist.labels.boundary import truth_key
from fgmoe_dist.labels.classes import MOST_CLASSES
from fgmoe_dist.labels.vectors import MOST_CHANNELS, mark_invalid
from fgmoe_dist.metrics.boundary.regions import region_boundary
from fgmoe_dist.settings import Section as SettingsSection

BOUNDARY_MAX_DIST = 0.0075  # PASCAL-Context's
MOST_VALUES = 65536  # of a picture of 16 bits
Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
Value = Annotated[int, Field(ge=0, lt=MOST_VALUES)]
Ignored = Annotated[int, Field(gt=-MOST_VALUES, lt=MOST_VALUES)]  # arrays mark with negative numbers
Byte = Annotated[int, Field(ge=0, le=255)]
Invalid = list[Annotated[float, Field(allow_inf_nan=True)]]  # what is not finite is invalid anyway, and may be named


class Part(SettingsSection):
    """`later`: keys that are newer than some shards. At their default they are not told, so that a set that was built
    before there were such keys is still known for the same."""

    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_ever(self, told: Any) -> dict[str, Any]:
        default = {key: type(self).model_fields[key].default for key in self.later}
        return {key: value for key, value in told(self).items() if key not in default or value != default[key]}


class Files(Part):
    """Where the file of an image lies: a pattern with {id} (`places`), or several; the first that exists counts."""

    file: Union[str, list[str]]

    @field_validator("file")
    @classmethod
    def _has_fields(cls, value: Union[str, list[str]]) -> Union[str, list[str]]:
        if not value or not all(map(fields, listed(value))):
            raise ValueError("write {id} where the image's id stands, as in labels/{id}.png")
        return value


class Section(Files):
    """The files of one task's labels, and what is in them."""

    kind: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes, if there are classes."""
        return None

    def definition(self) -> dict[str, Any]:
        """What `index.json` says of a task that is none of the six (docs/contracts.md)."""
        return {"kind": self.kind, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """What `index.json` says even of a task that everybody knows."""
        return {}

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        """The stored form of the label in a file, by key: `task`, and what else comes of it."""
        raise NotImplementedError


class Classes(Section):
    """A picture of class numbers, as `semseg` and `human_parts` are."""

    classes: Union[list[str], dict[str, Union[Value, list[Value]]]]
    first: Value = 0
    ignore: Union[list[Ignored], Literal["others"]] = Field(
        default_factory=lambda known: [ClassMap(len(known.get("classes", "1"))).ignore]
    )
    colours: list[tuple[Byte, Byte, Byte]] | None = None

    kind = "classes"
    later = frozenset({"colours"})

    @field_validator("classes")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not 1 <= len(value) <= MOST_CLASSES:
            raise ValueError(f"name 1 to {MOST_CLASSES} classes")
        return value

    @model_validator(mode="after")
    def _each_value_means_one_thing(self) -> Classes:
        if isinstance(self.classes, list) and self.first + len(self.classes) > MOST_VALUES:
            raise ValueError(f"first: the last class would be value {self.first + len(self.classes) - 1}, above 65535")
        if isinstance(self.classes, dict) and "first" in self.model_fields_set:
            raise ValueError(f"first={self.first}: classes gives each class its values already; leave first out")
        if faults := [*self._named_twice(), *self._of_two_classes()]:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _a_colour_each(self) -> Classes:
        if self.colours is not None and len(self.colours) != len(self.classes):
            raise ValueError(f"colours: there are {len(self.colours)} for {len(self.classes)} classes: give one each")
        return self

    def _named_twice(self) -> Iterator[str]:
        for name, times in Counter(self.names).items():
            if not name.strip():
                yield "classes: a class has no name; give it one"
            elif times > 1:
                yield f"classes: {name} is named {times} times; a name is one class's"

    def _of_two_classes(self) -> Iterator[str]:
        """Values that two classes claim, or a class and `ignore`. What is ignored by default gives way to a class."""
        owners: dict[int, str] = {}
        for name, values in zip(self.names, self.values()):
            for value in values:
                if owners.setdefault(value, name) != name:
                    yield f"classes: value {value} is both {owners[value]} and {name}; give it to one of them"
        for value in self.ignore if "ignore" in self.model_fields_set and self.ignore != "others" else ():
            if value in owners:
                yield f"ignore: value {value} is the class {owners[value]}; take it out of one of them"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def facts(self) -> dict[str, Any]:
        return {"colours": [list(colour) for colour in self.colours]} if self.colours is not None else {}

    def values(self) -> Iterator[list[int]]:
        """The values in the file of each class."""
        if isinstance(self.classes, list):
            return ([self.first + number] for number in range(len(self.classes)))
        return (values if isinstance(values, list) else [values] for values in self.classes.values())

    def table(self) -> np.ndarray:
        """int32 [65536]: the class of a value in the file, -1 refused."""
        ignore = ClassMap(len(self.classes)).ignore
        table = np.full(MOST_VALUES, ignore if self.ignore == "others" else -1, np.int32)
        if self.ignore != "others":
            table[[value for value in self.ignore if value >= 0]] = ignore
        for number, values in enumerate(self.values()):
            table[values] = number
        return table

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        value_HW = whole_numbers(path)
        label_HW = self._classes_of(value_HW)
        if (label_HW < 0).any():
            raise UserError(
                f"{path} holds value {value_HW[label_HW < 0][0]}, which is no class: name it under classes or ignore"
            )
        return {task: label_HW.astype(ClassMap(len(self.classes)).dtype)}

    def _classes_of(self, value_HW: np.ndarray) -> np.ndarray:
        """int32 [H, W]: the class of each value, -1 refused."""
        beyond_HW = (value_HW < 0) | (value_HW >= MOST_VALUES)
        if not beyond_HW.any():
            return self.table()[value_HW]
        ignored_HW = True if self.ignore == "others" else np.isin(value_HW, self.ignore)
        ignore = ClassMap(len(self.classes)).ignore
        return np.where(beyond_HW, np.where(ignored_HW, ignore, -1), self.table()[np.where(beyond_HW, 0, value_HW)])


class Mask(Section):
    """`sal`: a picture that is bright on what stands out, or of labels 0, 1 and 255 = ignore."""

    encoding: Literal["mask", "labels"] = "mask"

    kind = "binary"

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        return {task: mask(path).astype(np.uint8) if self.encoding == "mask" else mask_labels(path)}


class Edges(Mask):
    """`edge`: a mask, labels, or a map of region numbers whose boundaries are the edges."""

    encoding: Literal["mask", "labels", "regions"] = "mask"  # type: ignore[assignment]
    max_dist: float = Field(BOUNDARY_MAX_DIST, gt=0, lt=1)

    kind = "boundary"

    def definition(self) -> dict[str, Any]:
        return {**super().definition(), "max_dist": self.max_dist}

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        if self.encoding == "regions":  # as PASCAL-Context has them
            region_HW = whole_numbers(path)
            edge_HW = thin(cv2.Laplacian(region_HW.astype(np.float64), cv2.CV_64F) != 0)
            return {task: edge_HW, truth_key(task): thin(region_boundary(region_HW))}
        edge_HW = super().read(task, path)[task]
        return {task: edge_HW, truth_key(task): thin(edge_HW == 1)}


class Depth(Section):
    """`depth`: an .npy array or a picture of 8 or 16 bits, times `unit` metres (`factor` is another name for it), plus
    `offset` metres."""

    unit: float = Field(1.0, gt=0)
    offset: float = 0.0
    invalid: Invalid = [0]

    kind = "scalar"
    later = frozenset({"offset"})

    @model_validator(mode="before")
    @classmethod
    def _factor(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "factor" not in values:
            return values
        if "unit" in values:
            raise ValueError("give the metres of a stored unit as unit or as factor, not both")
        if isinstance(values["factor"], bool):
            raise ValueError("factor: give a number, not a truth value")
        return {"unit" if key == "factor" else key: value for key, value in values.items()}

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        return {task: _numbers(path, self.unit, self.offset, self.invalid, positive=True)}


class Scalar(Section):
    """One number a pixel: an .npy array or a picture of 8 or 16 bits, times `factor`, plus `offset`.

    `unit` is the name of the values' unit; a number there is a factor, as for `depth`. `scales` is that of
    `labels.ScalarMap`. What is not finite is invalid, and so are the values of `invalid`, as they are in the file.
    """

    unit: str = ""
    factor: float = Field(1.0, gt=0)
    offset: float = 0.0
    metric: str = "rmse"
    scales: Literal["none", "inverse", "proportional"] = "none"
    invalid: Invalid = []

    kind = "scalar"
    later = frozenset({"offset"})

    @model_validator(mode="before")
    @classmethod
    def _number_as_unit(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (factor := _as_number(values.get("unit"))) is None:
            return values
        if "factor" in values:
            raise ValueError(f"unit is the number {factor:g} and factor is given too: let unit be the unit's name")
        return {**{key: value for key, value in values.items() if key != "unit"}, "factor": factor}

    def definition(self) -> dict[str, Any]:
        return {**super().definition(), "unit": self.unit, "metric": self.metric, "scales": self.scales}

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        return {task: _numbers(path, self.factor, self.offset, self.invalid)}


class Normals(Section):
    """`normals`: RGB with n = 2x/255 - 1 and (0, 0, 0) = invalid, or an .npy of vectors, NaN or zero = invalid.

    `axes` says what the file's three channels are, seen from the camera: x right, y down or up as one likes, but the
    same everywhere, for a flip turns x around. `order` is that of an .npy's axes.
    """

    axes: tuple[Axis, Axis, Axis] = ("x", "y", "z")
    order: Literal["hwc", "chw"] = "hwc"

    kind = "vectors"
    later = frozenset({"order"})

    @field_validator("axes")
    @classmethod
    def _each_once(cls, value: tuple[Axis, Axis, Axis]) -> tuple[Axis, Axis, Axis]:
        if sorted(axis[-1] for axis in value) != ["x", "y", "z"]:
            raise ValueError("name each of x, y, z once")
        return value

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        order = [[axis[-1] for axis in self.axes].index(axis) for axis in "xyz"]
        minus = np.array([self.axes[channel].startswith("-") for channel in order])
        stored_HWC = directions(path, 3, self.order)
        ordered_HWC = stored_HWC[..., order]
        if stored_HWC.dtype != np.uint8:
            return {task: ordered_HWC * np.where(minus, np.float32(-1), np.float32(1))}
        return {task: mark_invalid(np.where(minus, 255 - ordered_HWC, ordered_HWC), stored_HWC.any(-1))}


class Vectors(Section):
    """`channels` numbers a pixel: a picture, or an .npy [H, W, C]; NaN = invalid.

    With `unit` they are directions, coded as `normals` are, x first. Else they are free components, which a flip does
    not change: an .npy has the values themselves, and a picture's darkest to brightest are `range`. `invalid` is the
    one value of a pixel, all channels of it as they are in the file, that says it has no label; `order` is that of an
    .npy's axes.
    """

    channels: int = Field(3, ge=1, le=MOST_CHANNELS)
    unit: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    metric: str = Field(default_factory=lambda known: "mean" if known.get("unit") else "rmse")
    invalid: Optional[Invalid] = None
    order: Literal["hwc", "chw"] = "hwc"

    kind = "vectors"
    later = frozenset({"order"})

    @model_validator(mode="after")
    def _agrees(self) -> Vectors:
        if not self.range[0] < self.range[1]:
            raise ValueError("range: give the lowest value and a higher one")
        if self.unit and (self.channels < 2 or self.invalid is not None or "range" in self.model_fields_set):
            raise ValueError("unit: directions have 2 channels or more, and neither range nor invalid")
        if self.invalid is not None and len(self.invalid) != self.channels:
            raise ValueError(f"invalid: give one value for each of the {self.channels} channels")
        return self

    def definition(self) -> dict[str, Any]:
        span = {} if self.unit else {"range": list(self.range)}
        return {**super().definition(), "channels": self.channels, "unit": self.unit, **span, "metric": self.metric}

    def read(self, task: str, path: Path) -> dict[str, np.ndarray]:
        if self.unit:
            return {task: directions(path, self.channels, self.order)}
        value_HWC = (components if is_array(path) else colours)(path, self.channels, self.order)
        valid_HW = np.isfinite(value_HWC).all(-1)
        if self.invalid is not None:
            valid_HW &= (value_HWC != marks(self.invalid, value_HWC)).any(-1)
        if is_array(path):
            value_HWC = as_float32(value_HWC, path, valid_HW[..., None])
        return {task: self._components(value_HWC, valid_HW, path)}

    def _components(self, value_HWC: np.ndarray, valid_HW: np.ndarray, path: Path) -> np.ndarray:
        """uint8 as it is where every pixel has a label, else float32."""
        low, high = self.range
        if value_HWC.dtype == np.uint8 and self.invalid is None:
            return value_HWC
        if np.issubdtype(value_HWC.dtype, np.unsignedinteger):
            value_HWC = low + value_HWC * ((high - low) / np.iinfo(value_HWC.dtype).max)
        elif (outside_HWC := valid_HW[..., None] & ((value_HWC < low) | (value_HWC > high))).any():
            value = value_HWC[outside_HWC][0]
            raise UserError(f"{path} holds value {value:g}, outside range [{low:g}, {high:g}]: correct range")
        return np.where(valid_HW[..., None], value_HWC, np.nan).astype(np.float32)


SECTIONS: dict[str, type[Section]] = {section.kind: section for section in (Classes, Mask, Scalar, Vectors, Edges)}

# The tasks that need not name their kind, in the order of the shards' keys.
KNOWN_SECTIONS: dict[str, type[Section]] = {
    "semseg": Classes,
    "human_parts": Classes,
    "sal": Mask,
    "normals": Normals,
    "depth": Depth,
    "edge": Edges,
}


def listed(value: str | list[str]) -> list[str]:
    """One pattern or several, as a list."""
    return [value] if isinstance(value, str) else value


def _as_number(value: Any) -> float | None:
    """A YAML number, which a reader takes for a word where it is written as 1e-3."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _numbers(path: Path, factor: float, offset: float, invalid: list[float], positive: bool = False) -> np.ndarray:
    """float32 [H, W] of a file's values times `factor` plus `offset`; NaN where invalid, or 0 where only what is
    positive is valid."""
    value_HW = measurements(path)
    valid_HW = np.isfinite(value_HW) & ~np.isin(value_HW, marks(invalid, value_HW))
    if value_HW.dtype == np.float16:
        value_HW = value_HW.astype(np.float32)  # a factor would be rounded, and overflow, in 16 bits
    if positive:  # known before it is asked what 32 bits hold: a huge negative number is a mark, and no depth
        with np.errstate(over="ignore", invalid="ignore"):
            valid_HW &= value_HW * factor + offset > 0
    scaled_HW = as_float32(value_HW, path, valid_HW, factor, offset)
    if positive:
        valid_HW &= scaled_HW > 0
    return np.where(valid_HW, scaled_HW, np.float32(0 if positive else np.nan))
