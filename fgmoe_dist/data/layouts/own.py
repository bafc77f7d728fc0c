"""A data set of one's own: a YAML file says where the images and labels lie and what their values mean.

`configs/datasets/example.yaml` shows every key. Whatever the file describes goes through the same builder, checks and
shards as the field's archives: any subset of the six known tasks, and any other task that names its kind of label. A
label file that is not there is a label that the image lacks; it gives no loss and no score.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import numpy as np
from pydantic import Field, TypeAdapter

from fgmoe_dist.data.label_files import is_array
from fgmoe_dist.data.layouts.base import Layout, words
from fgmoe_dist.data.layouts.orientation import upright
from fgmoe_dist.data.layouts.photographs import Photographs
from fgmoe_dist.data.layouts.places import ID, Places, fields
from fgmoe_dist.data.layouts.sections import (
    BOUNDARY_MAX_DIST,
    KNOWN_SECTIONS,
    SECTIONS,
    Edges,
    Files,
    Section,
    listed,
)
from fgmoe_dist.data.pictures import read_photograph
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import KINDS
from fgmoe_dist.plugins import HINT
from fgmoe_dist.settings import Section as SettingsSection
from fgmoe_dist.settings import explain_validation, validate
from fgmoe_dist.tasks import TASKS, create_tasks
from fgmoe_dist.yaml_files import read_yaml

ALL_KEYS = "configs/datasets/example.yaml shows all"


class Description(SettingsSection):
    """The whole YAML file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    root: str = "."
    id: str = ID
    image: Photographs
    splits: dict[str, Union[str, list[str]]] = Field(min_length=1)
    tasks: dict[str, Union[dict[str, Any], None]]


class OwnLayout(Layout):
    """The reader of a described data set.

    Args:
        path: the YAML file.
        root: the data set's folder; by default the file's `root`, which is relative to the file.

    Raises:
        UserError: the file cannot be read, says something impossible, or names a task none of whose files exist.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None, check: bool = True):
        self.path = Path(path)
        self.description, self.described = _read_description(self.path)
        self.dataset = self.description.name
        self.tasks = tuple(self.described)
        self.classes = {task: part.names for task, part in self.described.items() if part.names is not None}
        self.definitions = {
            task: part.definition() for task, part in self.described.items() if task not in TASKS or part.facts()
        }
        edge = self.described.get("edge")
        self.boundary_max_dist = edge.max_dist if isinstance(edge, Edges) else BOUNDARY_MAX_DIST
        try:
            self._check_tasks()
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        self.splits = tuple(self.description.splits)
        root = Path(root if root is not None else self.path.parent / self.description.root)
        self._places = Places(root, self.description.id)
        super().__init__(root, check)

    def listed_ids(self, split: str) -> tuple[list[str], str]:
        wheres = listed(self.description.splits[split])
        lost = [where for where in wheres if not ("*" in where or Path(where).suffix or (self.root / where).exists())]
        if lost:
            raise UserError(f"{self.path}: splits.{split}: below {self.root} is no such folder: {', '.join(lost)}")
        found = [self._ids_of(split, where) for where in wheres]
        return [id_ for ids, _ in found for id_ in ids], " and ".join(dict.fromkeys(what for _, what in found))

    def _ids_of(self, split: str, where: str) -> tuple[list[str], str]:
        """The ids in a list, or of the images in a folder or of a pattern with stars; and what they are, in words."""
        what = f"{self.path}: splits.{split}={where!r}"
        if "*" not in where and not (self.root / where).is_dir():
            return words(self.root / where)
        ids = self._places.below(listed(self.description.image.file), where)
        if not ids:
            raise UserError(
                f"{what}: no image of image.file {self.description.image.file} lies there below {self.root}; "
                "correct one of them"
            )
        return ids, what

    def image_path(self, id_: str) -> Path:
        patterns = listed(self.description.image.file)
        return self._places.find(patterns, id_) or self._places.expected(patterns[0], id_)

    def image(self, id_: str) -> np.ndarray:
        """The image, uint8 [H, W, 3] RGB, upright as `fgmoe predict` reads it."""
        return self._upright(id_)[0]

    def _upright(self, id_: str) -> tuple[np.ndarray, int]:
        """The image, and by which EXIF tag it was turned."""
        path = self.image_path(id_)
        return (self.description.image.read(path), 1) if is_array(path) else read_photograph(path)

    def pixels(self, id_: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The upright image, and its labels turned along where they were drawn on the pixels as they are stored."""
        (image_HWC, orientation), labels = self._upright(id_), self.read_labels(id_)
        if orientation == 1 or not labels:
            return image_HWC, labels
        path, labels_on = self.image_path(id_), self.description.image.labels_on
        return image_HWC, upright(labels, self.labels, orientation, image_HWC.shape[:2], labels_on, path)

    def places(self, id_: str) -> dict[str, list[Path]]:
        parts = {"image": self.description.image, **self.described}
        return {key: self._places.all(listed(part.file), id_) for key, part in parts.items()}

    def files(self, id_: str) -> list[Path]:
        labels = (self._find(part, id_) for part in self.described.values())
        return [self.image_path(id_), *(path for path in labels if path)]

    def check_labels(self, split: str, ids: Sequence[str]) -> None:
        for task, part in self.described.items():
            if not any(self._find(part, id_) for id_ in ids):
                raise UserError(
                    f"{self.path}: tasks.{task}.file {part.file}: none of the {len(ids)} images of {split} has such a "
                    f"file below {self.root}; correct the pattern or the list of ids, or leave the task out"
                )

    def _find(self, part: Files, id_: str) -> Path | None:
        return self._places.find(listed(part.file), id_)

    def meaning(self) -> str:
        """The description in JSON. What stood there before tasks were open is told as it was, so that a set built then
        is still known for the same."""
        known = {task: self.described.get(task) for task in KNOWN_SECTIONS}
        own = {
            task: {"kind": part.kind, **part.model_dump()}
            for task, part in self.described.items()
            if task not in KNOWN_SECTIONS
        }
        names = ("name", "image", "splits") if self.description.id == ID else ("name", "id", "image", "splits")
        description = {name: getattr(self.description, name) for name in names}
        return TypeAdapter(Any).dump_json({**description, "tasks": known | own}).decode()

    def read_labels(self, id_: str) -> dict[str, np.ndarray]:
        labels = {}
        for task, part in self.described.items():
            path = self._find(part, id_)
            if path is not None:
                labels |= part.read(task, path)
        return labels

    def _check_tasks(self) -> None:
        """Ask whether labels and tasks can be made of what the file says, before any shard is built on it."""
        labels = self.labels
        create_tasks(self.tasks, self)
        for task in (self.described.keys() & TASKS.keys()) - KNOWN_SECTIONS.keys():
            part = self.described[task]
            described = KINDS[part.kind].of(part.definition()).with_classes(part.names)
            if described != labels[task]:  # nobody would notice bytes that are decoded otherwise than coded
                raise UserError(f"tasks.{task} describes {described}, but this task has {labels[task]}: correct it")

    def root_faults(self) -> list[str]:
        if not self.root.is_dir():
            return [f"data set root {self.root} is no folder: correct root in {self.path}, or give --root"]
        faults, ids = [], []
        for split in self.splits:
            try:
                ids += self.ids(split)
            except UserError as error:
                faults.append(str(error))
        if not ids:
            return faults
        return faults + [
            f"{self.path}: tasks.{task}.file {part.file}: no image of any split has such a file below "
            f"{self.root}; correct the pattern, or leave the task out"
            for task, part in self.described.items()
            if not any(self._find(part, id_) for id_ in ids)
        ]

    def elsewhere(self) -> Path | None:
        return None


def _read_description(path: Path) -> tuple[Description, dict[str, Section]]:
    """The file and its tasks, the known ones first; `UserError` that names all mistakes in it."""
    values, faults, sections = read_yaml(path), [], {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: describes no data set; configs/datasets/example.yaml shows what it may say")
    description, mistakes = validate(Description, values)
    faults += explain_validation(mistakes, Description, ALL_KEYS)
    tasks = values.get("tasks")
    for task, part in tasks.items() if isinstance(tasks, dict) else ():
        if isinstance(part, dict):
            try:
                section = _section(task, part)
                said = {key: value for key, value in part.items() if key != "kind"}
                sections[task], mistakes = validate(section, said)
                faults += explain_validation(mistakes, section, ALL_KEYS, f"tasks.{task}")
                if not mistakes and task not in KNOWN_SECTIONS:
                    faults += _contradictions(task, sections[task])
            except UserError as error:
                faults.append(str(error))
    if not faults:
        faults = _patterns_without_the_id(description, sections)
    if faults:
        raise UserError(f"{path}: " + "; ".join(faults))
    if not sections:
        raise UserError(f"{path}: tasks is empty; describe one of {', '.join(KNOWN_SECTIONS)}, or another by its kind")
    known = {task: sections[task] for task in KNOWN_SECTIONS if task in sections}
    return description, known | sections


def _contradictions(task: str, part: Section) -> Iterator[str]:
    """What the file says of a task of ours that the task itself says otherwise: its unit and its headline."""
    for key, name in (("unit", "unit"), ("metric", "headline")):
        said, own = getattr(part, key, None), getattr(TASKS.get(task), name, None)
        if key in part.model_fields_set and isinstance(said, str) and said != own and isinstance(own, str):
            yield f"tasks.{task}.{key}={said!r}: of {task} it is {own!r} everywhere; give the task another name"


def _patterns_without_the_id(description: Description, sections: dict[str, Section]) -> list[str]:
    """What is wrong with `id`, and each pattern from which no id could be made."""
    wanted = fields(description.id)
    if not wanted:
        return [f"id={description.id!r}: name the fields that it is made of, as in {{building}}_{{view}}"]
    parts = {"image": description.image, **{f"tasks.{task}": part for task, part in sections.items()}}
    return [
        f"{where}.file={pattern!r}: write {', '.join(f'{{{name}}}' for name in sorted(wanted - fields(pattern)))} "
        "where the image's id stands, as in labels/{id}.png"
        for where, part in parts.items()
        for pattern in listed(part.file)
        if wanted - fields(pattern)
    ]


def _section(task: str, part: dict[str, Any]) -> type[Section]:
    """The section that says what the file says of one task."""
    kind = part.get("kind")
    if task in TASKS:
        section = KNOWN_SECTIONS.get(task, SECTIONS.get(TASKS[task].label.kind))
        if section is None:
            raise UserError(
                f"tasks.{task}: nothing reads files of its kind of label, {TASKS[task].label.kind}; there are"
                f" {', '.join(SECTIONS)}{HINT}"
            )
        if kind not in (None, section.kind):
            raise UserError(
                f"tasks.{task}.kind: {task} is of kind {section.kind}, not {kind}: give the task another name"
            )
        return section
    if kind is None:
        raise UserError(
            f"tasks.{task}: no such task{_nearest(task, TASKS)}; one that is none of "
            f"{', '.join(TASKS)} needs a kind: {' | '.join(SECTIONS)}{HINT}"
        )
    if not isinstance(kind, str) or kind not in SECTIONS:
        raise UserError(
            f"tasks.{task}.kind: no kind {kind!r}{_nearest(kind, SECTIONS)}; use {' | '.join(SECTIONS)}{HINT}"
        )
    return SECTIONS[kind]


def _nearest(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (do you mean {near[0]}?)" if near else ""
