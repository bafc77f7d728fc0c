"""Is this data set on disk whole, and the one that it should be? Answered in seconds, before anything is built.

Which files there are is told from the listings of the folders; a few images of each split are opened and read as a
build would read them. Everything that is wrong is listed, not the first thing only.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgmoe_dist.data import codec
from fgmoe_dist.data.layouts import Layout, id_faults, open_layout
from fgmoe_dist.data.survey import Tally, doubts
from fgmoe_dist.errors import UserError

OPENED = 8  # images of each split
NAMED = 3  # of many ids in a message


@dataclass
class Report:
    """What was found.

    Attributes:
        faults: a line for each thing that is wrong.
        notes: a line for each thing worth knowing.
        splits: by split, how many ids are listed, and how many of them have each file.
        files: by key, what the files that were opened hold.
    """

    dataset: str
    root: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: int = 0

    def figures(self) -> dict[str, Any]:
        """For `--json`."""
        return {"whole": not self.faults, **dataclasses.asdict(self)}

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.dataset} in {self.root}"]
        for split, counts in self.splits.items():
            rest = ", ".join(f"{key} {count}" for key, count in counts.items() if key != "listed")
            lines.append(f"  {split}: {counts['listed']} listed; there are {rest}")
        lines += [f"  {self.opened} images were opened:"] * bool(self.opened)
        for key, found in self.files.items():
            span = f"{found['lowest']:.5g} to {found['highest']:.5g}" if found["labelled"] else "nothing"
            lines.append(f"    {key}: {found['form']}, {span}, {100 * found['labelled']:.0f} % of the pixels")
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"fault: {fault}" for fault in self.faults] or ["it is whole"])


def check_data_set(dataset: str | Path, root: str | Path | None) -> Report:
    """Look at a data set.

    Raises:
        UserError: there is no such data set, or its description is at fault.
    """
    layout = open_layout(dataset, root, check=False)
    faults = _root_faults(layout, dataset, root)
    if place := layout.elsewhere() if faults else None:
        layout = open_layout(dataset, place, check=False)
        faults += layout.root_faults()
    check = _Check(layout, Report(layout.dataset, str(layout.root), faults))
    if layout.root.is_dir():
        check.run()
    return check.report


def _root_faults(layout: Layout, dataset: str | Path, root: str | Path | None) -> list[str]:
    """What is wrong with the root, and what a layout that somebody added says of it by itself."""
    try:
        open_layout(dataset, root)
    except UserError as error:
        return list(dict.fromkeys([*layout.root_faults(), str(error)]))
    return layout.root_faults()


class _Check:
    """One look at a data set; folders are listed once."""

    def __init__(self, layout: Layout, report: Report):
        self.layout, self.report = layout, report
        self.names = cache(_names)

    def run(self) -> None:
        splits = {split: ids for split in self.layout.splits if (ids := self._listed(split))}
        self._check_overlap(splits)
        have = {split: self._have(split, ids) for split, ids in splits.items()}
        self._tell_what_lacks(splits, have)
        self._note_the_unlisted(splits)
        self._open_some([id_ for split in splits for id_ in _spread(self._readable(splits[split], have[split]))])
        self.report.faults = list(dict.fromkeys(self.report.faults))

    def _listed(self, split: str) -> list[str]:
        """The ids of a split that could be used."""
        try:
            ids, what = self.layout.listed_ids(split)
        except UserError as error:
            self.report.faults.append(str(error))
            return []
        self.report.faults += id_faults(ids, what)
        published = self.layout.published.get(split, len(ids))
        if published != len(ids):
            told = f"{what} has {len(ids)} ids: the archive as published has {published} for {split}"
            self.report.faults.append(told)
        return [id_ for id_ in dict.fromkeys(ids) if not any(id_faults([id_], what))]

    def _check_overlap(self, splits: dict[str, list[str]]) -> None:
        for one, other in itertools.combinations(splits, 2):
            if both := sorted(set(splits[one]) & set(splits[other])):
                self.report.faults.append(f"{_some(both)} in {one} and in {other} as well: take them off one")

    def _have(self, split: str, ids: list[str]) -> dict[str, list[str]]:
        """Which ids have each file."""
        have: dict[str, list[str]] = {key: [] for key in self.layout.places(ids[0])}
        for id_ in ids:
            for key, places in self.layout.places(id_).items():
                if any(path.name in self.names(path.parent) for path in places):
                    have[key].append(id_)
        self.report.splits[split] = {"listed": len(ids), **{key: len(some) for key, some in have.items()}}
        return have

    def _tell_what_lacks(self, splits: dict[str, list[str]], have: dict[str, dict[str, list[str]]]) -> None:
        """Every image must be there, and of a published archive every label; of other sets each split has some."""
        for split, ids in splits.items():
            for key, some in have[split].items():
                if missing := sorted(set(ids) - set(some)):
                    nowhere = not any(have[other][key] for other in splits)
                    self._tell_missing(split, key, missing, len(ids), nowhere)

    def _tell_missing(self, split: str, key: str, missing: list[str], count: int, nowhere: bool) -> None:
        places = self.layout.places(missing[0])[key]
        folders = [path.parent for path in places]
        lost = folders and not any(folder.is_dir() for folder in folders)
        if key != "image" and (lost if self.layout.published else nowhere):
            return  # told of the root already
        where = " or ".join(map(str, folders)) or self.layout.root
        if key == "image" or self.layout.published:
            self.report.faults.append(f"{split}: {_some(missing)} of {count} without {key} in {where}")
        elif len(missing) == count:
            self.report.faults.append(f"{split}: no image has a label for {key}: correct its pattern")
        else:
            self.report.notes.append(f"{split}: {len(missing)} of {count} images have no label for {key}")

    def _note_the_unlisted(self, splits: dict[str, list[str]]) -> None:
        """Images beside listed ones that no split names."""
        listed = {path for ids in splits.values() for id_ in ids for path in self.layout.places(id_)["image"]}
        others = [
            folder / name
            for folder, suffix in sorted({(path.parent, path.suffix) for path in listed})
            for name in sorted(self.names(folder))
            if name.endswith(suffix) and not name.startswith(".") and folder / name not in listed
        ]
        if others:
            self.report.notes.append(f"{len(others)} images are in no split, {others[0]} for one")

    def _readable(self, ids: list[str], have: dict[str, list[str]]) -> list[str]:
        """The ids of which no file that a build needs is known to be missing."""
        needed = have if self.layout.published else {"image": have["image"]}
        whole = set(ids).intersection(*needed.values())
        return [id_ for id_ in ids if id_ in whole]

    def _open_some(self, ids: list[str]) -> None:
        """Read images as a build would."""
        found = {key: _Found() for key in ("image", *self.layout.tasks)}
        sizes: dict[tuple[int, int], list[str]] = {}
        for id_ in ids:
            try:
                stored = self.layout.stored(id_)
            except UserError as error:
                self.report.faults.append(str(error))
                continue
            self.report.opened += 1
            sizes.setdefault(stored["image"].shape[:2], []).append(id_)
            for key in found.keys() & stored.keys():
                found[key].see(self.layout, key, id_, stored[key])
        for size_hw, some in sizes.items():
            if not self.layout.has_size(size_hw):
                told = f"{_some(some)} of {size_hw[0]}x{size_hw[1]}: the archive as published has {self.layout.size}"
                self.report.faults.append(f"{told}; this is another variant of it, or its images were resized")
        self.report.files = {key: one.figures() for key, one in found.items() if one.images}
        labels = self.layout.labels
        survey = {task: found[task].tally.figures(labels[task]) for task in self.layout.tasks if found[task].images}
        for task, reason in doubts(self.layout, survey).items():
            self.report.faults.append(f"{task}: in the {found[task].images} images that were opened {reason}")


class _Found:
    """What the opened files of one key hold."""

    def __init__(self) -> None:
        self.tally = Tally()  # of a label
        self.images = self.pixels = self.labelled = 0
        self.low, self.high = np.inf, -np.inf
        self.form = ""

    def see(self, layout: Layout, key: str, id_: str, stored: np.ndarray) -> None:
        native = codec.native(key, stored, layout.labels)
        self.images += 1
        self.form = self.form or _form(layout.file_of(key, id_))
        valid_HW = layout.labels[key].valid(native) if key != "image" else np.ones(native.shape[:2], bool)
        values = native[valid_HW]
        self.pixels += valid_HW.size
        self.labelled += int(valid_HW.sum())
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if key != "image":
            self.tally.add(layout.labels[key], native)

    def figures(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "images": self.images,
            "labelled": self.labelled / max(self.pixels, 1),
            "lowest": self.low,
            "highest": self.high,
        }


def _form(path: Path) -> str:
    """A file's own format, mode and size."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return f"npy {array.dtype} [{', '.join(map(str, array.shape))}]"
        if path.suffix == ".mat":
            return "mat"
        with Image.open(path) as picture:
            return f"{picture.format} {picture.mode} {picture.height}x{picture.width}"
    except (OSError, ValueError):
        return path.suffix


def _names(folder: Path) -> frozenset[str]:
    """What a folder holds; nothing if it cannot be read."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _spread(ids: list[str]) -> list[str]:
    """A few of them, the first and the last among them."""
    return [ids[number] for number in sorted({round(k * (len(ids) - 1) / (OPENED - 1)) for k in range(OPENED)}) if ids]


def _some(ids: list[str]) -> str:
    """`3 ids (a, b, c)`."""
    told = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
    return f"{len(ids)} {'id' if len(ids) == 1 else 'ids'} ({told})"
