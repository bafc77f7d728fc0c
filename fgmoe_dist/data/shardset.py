"""A set of WebDataset shards as read: where it lies, what its index says, and the raw entries of one shard.

A shard is a plain tar of entries `ID.<key>.<ext>`, the entries of a sample next to each other, as any WebDataset reader
expects. Beside the shards lies `index.json` (docs/contracts.md). A set may lie in a folder, behind a brace pattern, or
behind anything WebDataset's `gopen` opens: http, object stores, `pipe:` commands.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fgmoe_dist.data import codec
from fgmoe_dist.data.shard_index import check_survey, parse_index
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import Label
from fgmoe_dist.tasks.labelling import KNOWN_KEYS, labels_of, require_labels

INDEX = "index.json"

_ENTRY = re.compile(r"(?P<id>[A-Za-z0-9_-]+)\.(?P<key>[a-z0-9_]+)\.(?P<ext>[a-z]+)")


class BadSample(UserError):
    """A sample, or a shard with its `samples` samples, cannot be read. The message names shard, sample and cure."""

    def __init__(self, message: str, samples: int = 1):
        super().__init__(message)
        self.samples = samples


_ALIKE = ("dataset", "tasks", "classes", "definitions", "boundary_max_dist")  # of sets that are read as one


@dataclass(frozen=True)
class Shard:
    """One tar: where it is opened, and what the index says of it and of the labels in it, by key."""

    url: str
    name: str
    samples: int
    bytes: int
    sha256: str
    ids: tuple[str, ...]
    labels: Mapping[str, Label] = field(default_factory=lambda: KNOWN_KEYS, hash=False, repr=False)


@dataclass(frozen=True)
class FeatureCache:
    """What a set of encoder features (`fgmoe shards features`) says of itself.

    Attributes:
        views: the shards of each augmented view; shard n of every view holds the images of shard n of the others.
        levels_Chw: the shape of each encoder level.
        made_with: the settings and the encoder's checksum, which a run that reads them must share.
    """

    views: tuple[tuple[Shard, ...], ...]
    levels_Chw: tuple[tuple[int, int, int], ...]
    made_with: dict


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split and what their index promises.

    Attributes:
        dataset: "nyud", "pascal" or the name of one's own data set.
        tasks: the tasks that some sample has a label for.
        classes: class names of the tasks that have classes.
        boundary_max_dist: matching radius of odsF as a share of the image diagonal.
        samples: number of samples over all shards.
        shards: in the index's order; of cached features those of the first view.
        cache: for a set that holds encoder features in place of images.
        definitions: of each task that is none of the six known ones: its kind of label and its options
            (docs/contracts.md).
        largest: the largest height and the largest width of its images, where the index says so (`sizes`).
        survey: what labels there are, by task (`survey`); empty where the index says nothing.
    """

    dataset: str
    split: str
    tasks: tuple[str, ...]
    classes: dict[str, list[str]]
    boundary_max_dist: float
    samples: int
    shards: tuple[Shard, ...]
    cache: FeatureCache | None = None
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    largest: tuple[int, int] | None = None
    survey: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @cached_property
    def labels(self) -> dict[str, Label]:
        """The label of every key of a sample: of each task, and of what evaluation reads beside it."""
        return labels_of(self.tasks, self.classes, self.definitions)

    @property
    def identity(self) -> dict[str, str | int]:
        """What a run says of the images it has seen. Sets of one digest hold the same, in the same order."""
        digest = hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:32]
        return {"name": self.dataset, "split": self.split, "images": self.samples, "digest": digest}

    @classmethod
    def open(cls, where: str | Path | Sequence[str | Path]) -> ShardSet:
        """Read the index of a set.

        Args:
            where: a folder or URL that holds `index.json`, a brace pattern of such folders or of their tars
                (`/data/nyud-train-{000000..000049}.tar`), a `pipe:` command that ends in one
                (`pipe:aws s3 cp s3://bucket/nyud-train-{000000..000049}.tar -`), or a list of any of these.
                Tars named one by one restrict the set to them.

        Raises:
            UserError: nothing there, no index, an index of another format, or several that do not belong together.
        """
        wheres = [where] if isinstance(where, (str, Path)) else list(where)
        parts = [part for item in wheres for part in _open_pattern(str(item))]
        if not parts:
            raise UserError("no shards given: set data.train and data.val to shard folders or patterns")
        return _join(parts)

    def require(self, tasks: Sequence[str]) -> None:
        """Raise `UserError` unless every one of `tasks` has labels here."""
        require_labels(tasks, self, f"the {self.dataset} {self.split} shards")

    def find(self, id_: str) -> Shard:
        """The shard that holds an image id, or `UserError`."""
        for shard in self.shards:
            if id_ in shard.ids:
                return shard
        raise UserError(f"no image {id_!r} in the {self.dataset} {self.split} shards: ids look like {self._first_id()}")

    def _first_id(self) -> str:
        return next((shard.ids[0] for shard in self.shards if shard.ids), "none")


Entries = dict[str, tuple[str, memoryview]]  # key -> (extension, bytes)


def read_shard(shard: Shard) -> dict[str, Entries]:
    """The raw entries of every sample of a shard, in its order; nothing is decoded.

    The whole tar is read into memory and the entries are views of it: shards are small, and it makes one request of
    each, wherever it lies.

    Raises:
        BadSample: as `fetch_shard` and `parse_shard`; it counts for all samples of the shard.
    """
    try:
        return parse_shard(shard, fetch_shard(shard))
    except BadSample as fault:
        fault.samples = shard.samples
        raise


def fetch_shard(shard: Shard) -> bytes:
    """All bytes of a shard, or `BadSample` if it is not there."""
    return _fetch(shard.url, f"shard {shard.url}", BadSample)


def parse_shard(shard: Shard, data: bytes) -> dict[str, Entries]:
    """The raw entries of a shard's bytes.

    Raises:
        BadSample: cut off, not what the index lists, or an entry that no shard of ours holds (links, paths, pickles).
    """
    samples: dict[str, Entries] = {}
    view = memoryview(data)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                id_, key, extension = parse_entry(member, shard)
                start = member.offset_data
                samples.setdefault(id_, {})[key] = (extension, view[start : start + member.size])
    except tarfile.TarError as error:
        raise BadSample(f"shard {shard.url} is no whole tar ({error}): copy it again, or rebuild the set") from error
    if len(data) != shard.bytes or tuple(samples) != shard.ids:
        raise BadSample(
            f"shard {shard.url} is not what its index says ({len(data)} bytes with {len(samples)} samples, "
            f"should be {shard.bytes} with {shard.samples}): copy it again, or rebuild the set"
        )
    return samples


def parse_entry(member: tarfile.TarInfo, shard: Shard) -> tuple[str, str, str]:
    """(id, key, extension) of a tar entry; everything but a plain file of a known name is refused."""
    match = _ENTRY.fullmatch(member.name)
    if not member.isreg() or not match or not codec.is_entry(match["key"], match["ext"], shard.labels):
        what = "a link or special file" if match and not member.isreg() else "not ID.<key>.<ext> with a known key"
        raise BadSample(
            f"shard {shard.url} holds {member.name!r}, {what}: it was not built by `fgmoe shards build`, drop it"
        )
    return match["id"], match["key"], match["ext"]


def decode_sample(shard: Shard, id_: str, entries: Entries, keys: Sequence[str]) -> dict:
    """Stored arrays (see `codec`) of `keys` as far as the sample has them, always `id` and `image`.

    A sample of cached features has `features` in the image's place, which `keys` then name.

    Raises:
        BadSample: an entry is damaged, the image is missing, or a label has not its image's size.
    """
    sample: dict[str, np.ndarray] = {}
    picture = "features" if "features" in keys else "image"
    size_hw = None
    try:
        if picture not in entries:
            raise codec.CodecError(f"it has no {picture}")
        for key in dict.fromkeys((picture, *keys)):
            if key in entries:
                sample[key] = codec.decode(key, *entries[key], shard.labels)
                codec.check(key, sample[key], size_hw, shard.labels)
                size_hw = size_hw if key == "features" else size_hw or sample[key].shape[:2]
    except codec.CodecError as error:
        raise BadSample(f"sample {id_} of shard {shard.url}: {error}; rebuild that shard") from error
    return {"id": id_, **sample}


def _open_pattern(where: str) -> list[ShardSet]:
    """The sets behind one pattern, one for each index it touches."""
    from braceexpand import UnbalancedBracesError, braceexpand

    try:
        urls = list(braceexpand(where))
    except UnbalancedBracesError as error:
        raise UserError(f"shard pattern {where!r} has unbalanced braces: close them") from error
    indices: dict[str, list[str] | None] = {}
    for url in urls:
        index_url, name = _index_of(url)
        indices.setdefault(index_url, [] if name else None)
        if name:
            indices[index_url].append(name)
    return [_read_index(index_url, names) for index_url, names in indices.items()]


def _index_of(url: str) -> tuple[str, str | None]:
    """Where the index of a folder or tar lies, and the tar's name.

    A tar is what ends in .tar and is no folder; folders may have .tar in their names. In a `pipe:` command the last
    word that ends so is the shard, and the index is asked for in its place.
    """
    if url.startswith("pipe:"):
        tars = list(re.finditer(r"[^/\s'\"=]+\.tar(?![^\s'\"?])", url))
        if not tars:
            raise UserError(
                f"shard pattern {url!r} names no .tar: give the command that prints one, e.g. pipe:cat a.tar"
            )
        return f"{url[: tars[-1].start()]}{INDEX}{url[tars[-1].end() :]}", tars[-1].group()
    place, query, asked = url.partition("?") if "://" in url else (url, "", "")
    head, slash, name = place.rpartition("/")
    if name.endswith(".tar") and ("://" in url or not Path(url).is_dir()):
        return f"{head}{slash}{INDEX}{query}{asked}", name
    return f"{place.rstrip('/')}/{INDEX}{query}{asked}", None


def _read_index(index_url: str, names: list[str] | None) -> ShardSet:
    index = parse_index(_fetch(index_url, f"shard index {index_url}", UserError), index_url)
    head, _, tail = index_url.rpartition(INDEX)
    if "views" in index:
        if names is not None:
            raise UserError(f"{index_url} is of cached features: give the folder, not single shards")
        return _read_views(index, [f"{head}{view}/{INDEX}{tail}" for view in index["views"]])
    try:
        tasks, classes, definitions = tuple(index["tasks"]), index["classes"], index.get("definitions", {})
        labels = labels_of(tasks, classes, definitions)
        check_survey(index.get("survey", {}), labels)
        shards = [
            Shard(f"{head}{s['name']}{tail}", s["name"], s["samples"], s["bytes"], s["sha256"], tuple(s["ids"]), labels)
            for s in index["shards"]
        ]
        if names is not None:
            by_name = {shard.name: shard for shard in shards}
            if strangers := [name for name in names if name not in by_name]:
                raise UserError(f"it has no {strangers[0]!r}: name other shards, or rebuild the set")
            shards = [by_name[name] for name in names]
        return ShardSet(
            dataset=index["dataset"],
            split=index["split"],
            tasks=tasks,
            classes=classes,
            boundary_max_dist=index["boundary_max_dist"],
            samples=sum(shard.samples for shard in shards),
            shards=tuple(shards),
            definitions=definitions,
            **(_facts(index) if names is None else {}),  # they are of all shards
        )
    except UserError as error:
        raise UserError(f"shard index {index_url}: {error}") from error


def _facts(index: dict) -> dict[str, Any]:
    """What an index says besides, unless it was written before it said so."""
    known = {"largest", "survey"} <= index.keys()
    return {"largest": tuple(index["largest"]), "survey": index["survey"]} if known else {}


def _read_views(index: dict, index_urls: list[str]) -> ShardSet:
    """A set of cached features: the index of the whole names a folder a view, each a set of its own."""
    views = [_read_index(index_url, None) for index_url in index_urls]
    cache = FeatureCache(
        views=tuple(view.shards for view in views),
        levels_Chw=tuple(tuple(shape) for shape in index["levels"]),
        made_with=index["made_with"],
    )
    return replace(views[0], cache=cache)


def _join(parts: list[ShardSet]) -> ShardSet:
    """Several sets of one data set as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if part.cache or first.cache:
            raise UserError("cached features do not mix with other shards: give one folder of them")
        if any(getattr(part, name) != getattr(first, name) for name in _ALIKE):
            raise UserError(
                f"shards of {first.dataset} ({', '.join(first.tasks)}) and {part.dataset} ({', '.join(part.tasks)}) "
                "do not mix: give sets with the same tasks, classes and matching radius of boundaries"
            )
    shards = tuple(shard for part in parts for shard in part.shards)
    sizes = [part.largest for part in parts]
    largest = None if None in sizes else tuple(map(max, *sizes))
    return replace(first, samples=sum(part.samples for part in parts), shards=shards, largest=largest, survey={})


def _fetch(url: str, what: str, error_type: type[UserError]) -> bytes:
    """All bytes behind a path or URL."""
    try:
        if not re.match(r"[a-z0-9]+:", url):
            return Path(url).read_bytes()
        from webdataset.gopen import gopen  # half a second to import, and local folders do without

        with gopen(url, "rb") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        reason = error.strerror or "it could not be fetched" if isinstance(error, OSError) else str(error)
        raise error_type(f"cannot read {what} ({reason}): check the path, or build it with `fgmoe shards build`") from (
            error
        )
