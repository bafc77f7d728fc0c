"""A data set of one's own: a YAML file says where the images and labels lie and what their values mean.

`configs/datasets/example.yaml` shows every key. Whatever the file describes goes through the same builder, checks and
shards as the field's archives: any subset of the six known tasks, and any other task that names its kind of label. A
label file that is not there is a label that the image lacks; it gives no loss and no score.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Union

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from fgmoe_dist.data.layouts.base import Layout, read_id_list
from fgmoe_dist.data.layouts.sections import (
    BOUNDARY_MAX_DIST,
    KNOWN_SECTIONS,
    SECTIONS,
    Edges,
    Files,
    Part,
    Section,
    listed,
)
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import KINDS
from fgmoe_dist.plugins import HINT
from fgmoe_dist.tasks import TASKS, create_tasks


class Description(Part):
    """The whole YAML file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    root: str = "."
    image: Files
    splits: dict[str, str] = Field(min_length=1)
    tasks: dict[str, Union[dict[str, Any], None]]


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
        self.description, self.described = _read_description(self.path)
        self.dataset = self.description.name
        self.tasks = tuple(self.described)
        self.classes = {task: part.names for task, part in self.described.items() if part.names is not None}
        self.definitions = {task: part.definition() for task, part in self.described.items() if task not in TASKS}
        edge = self.described.get("edge")
        self.boundary_max_dist = edge.max_dist if isinstance(edge, Edges) else BOUNDARY_MAX_DIST
        try:
            self._check_tasks()
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        self.splits = tuple(self.description.splits)
        super().__init__(root if root is not None else self.path.parent / self.description.root)

    def ids(self, split: str) -> list[str]:
        self._check_split(split)
        return read_id_list(self.root / self.description.splits[split])

    def image_path(self, id_: str) -> Path:
        pattern = listed(self.description.image.file)[0]
        return self.description.image.find(self.root, id_) or self.root / pattern.replace("{id}", id_)

    def files(self, id_: str) -> list[Path]:
        labels = (part.find(self.root, id_) for part in self.described.values())
        return [self.image_path(id_), *(path for path in labels if path)]

    def meaning(self) -> str:
        """The description in JSON. What stood there before tasks were open is told as it was, so that a set built then
        is still known for the same."""
        known = {task: self.described.get(task) for task in KNOWN_SECTIONS}
        own = {
            task: {"kind": part.kind, **part.model_dump()}
            for task, part in self.described.items()
            if task not in KNOWN_SECTIONS
        }
        description = {name: getattr(self.description, name) for name in ("name", "image", "splits")}
        return TypeAdapter(Any).dump_json({**description, "tasks": known | own}).decode()

    def read_labels(self, id_: str) -> dict[str, np.ndarray]:
        labels = {}
        for task, part in self.described.items():
            path = part.find(self.root, id_)
            if path is not None:
                labels |= part.read(task, path)
        return labels

    def _check_tasks(self) -> None:
        """Ask whether labels and tasks can be made of what the file says, before any shard is built on it."""
        labels = self.labels
        create_tasks(self.tasks, self)
        for task in self.described.keys() - KNOWN_SECTIONS.keys() - self.definitions.keys():
            part = self.described[task]
            described = KINDS[part.kind].of(part.definition()).with_classes(part.names)
            if described != labels[task]:  # nobody would notice bytes that are decoded otherwise than coded
                raise UserError(f"tasks.{task} describes {described}, but this task has {labels[task]}: correct it")

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


def _read_description(path: Path) -> tuple[Description, dict[str, Section]]:
    """The file and its tasks, the known ones first; `UserError` that names all mistakes in it."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"data set file {path} cannot be read ({' '.join(str(error).split())})") from error
    faults: list[str] = []
    sections: dict[str, Section] = {}
    try:
        description = Description.model_validate(values)
    except ValidationError as error:
        faults += [_explain(entry) for entry in error.errors()]
    tasks = values.get("tasks") if isinstance(values, dict) else None
    for task, part in tasks.items() if isinstance(tasks, dict) else ():
        if isinstance(part, dict):
            try:
                sections[task] = _section(task, part)
            except ValidationError as error:
                faults += [_explain(entry, f"tasks.{task}") for entry in error.errors()]
            except UserError as error:
                faults.append(str(error))
    if faults:
        raise UserError(f"{path}: " + "; ".join(faults))
    if not sections:
        raise UserError(f"{path}: tasks is empty; describe one of {', '.join(KNOWN_SECTIONS)}, or another by its kind")
    known = {task: sections[task] for task in KNOWN_SECTIONS if task in sections}
    return description, known | sections


def _section(task: str, part: dict[str, Any]) -> Section:
    """What the file says of one task."""
    kind = part.get("kind")
    if task in TASKS:
        section = KNOWN_SECTIONS.get(task, SECTIONS[TASKS[task].label.kind])
        if kind not in (None, section.kind):
            raise UserError(
                f"tasks.{task}.kind: {task} is of kind {section.kind}, not {kind}: give the task another name"
            )
    elif kind is None:
        raise UserError(
            f"tasks.{task}: no such task{_nearest(task, TASKS)}; one that is none of "
            f"{', '.join(TASKS)} needs a kind: {' | '.join(SECTIONS)}{HINT}"
        )
    elif kind not in SECTIONS:
        raise UserError(
            f"tasks.{task}.kind: no kind {kind!r}{_nearest(kind, SECTIONS)}; use {' | '.join(SECTIONS)}{HINT}"
        )
    else:
        section = SECTIONS[kind]
    return section.model_validate({key: value for key, value in part.items() if key != "kind"})


def _nearest(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (do you mean {near[0]}?)" if near else ""


def _explain(entry: Any, above: str = "") -> str:
    """One fault of a validation, with its place in the file."""
    where = ".".join([above] * bool(above) + [str(part) for part in entry["loc"] if part not in ("str", "list[str]")])
    if entry["type"] == "extra_forbidden":
        return f"{where}: no such key; configs/datasets/example.yaml shows all"
    return f"{where}: {entry['msg'].removeprefix('Value error, ')}"
