"""How a folder becomes a set of shards, whoever fills them: it is claimed, filled tar by tar, and whole with its index.

Tars are deterministic. Each is written beside its place and renamed, so a shard under its final name is always whole,
and an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fgmoe_dist.data import codec
from fgmoe_dist.data.shardset import FORMAT, INDEX, ShardSet
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_atomically
from fgmoe_dist.labels import Label

PLAN = "plan.json"  # what an unfinished build in a folder is of; gone once there is an index


class Described(Protocol):
    """A data set as its index describes it; a `Layout` and a `ShardSet` are."""

    dataset: str
    tasks: tuple[str, ...]
    classes: Mapping[str, Sequence[str]]
    definitions: Mapping[str, Mapping[str, Any]]
    boundary_max_dist: float
    labels: Mapping[str, Label]


def is_finished(out: Path, plan: dict) -> bool:
    """Whether `out` holds the whole set of this plan; `UserError` if it holds another."""
    if not (out / INDEX).is_file():
        return False
    ShardSet.open(out)  # says what is wrong with a damaged index
    source = json.loads((out / INDEX).read_bytes()).get("source", {})
    changed = _first_change(source, plan)
    if changed is not None or not _same_source(source, plan):
        why = f", made before the files of image {changed} changed" if changed else ""
        raise UserError(f"{out} already holds other shards{why}: give another --out, or remove that folder")
    return True


def unfinished(out: Path, plan: dict) -> dict:
    """The plan of the unfinished build in `out`, empty if there is none.

    Where sources are known by their contents, each tar can be told to be still good or not; so the plan may be that of
    other images, or of another description, of the same data set and split.

    Raises:
        UserError: `out` holds anything else.
    """
    if not (out / PLAN).is_file():
        if any(out.glob("*.tar")):
            raise UserError(f"{out} holds tars without an index: give another --out, or remove them")
        return {}
    try:
        old = json.loads((out / PLAN).read_bytes())
    except ValueError:
        old = None
    if isinstance(old, dict):
        names = ("dataset", "split")
        known = "contents" in old and "contents" in plan and all(old.get(name) == plan[name] for name in names)
        if known or _same_source(old, plan):
            return old
    raise UserError(f"{out} holds an unfinished build of something else: give another --out, or remove it")


def claim(out: Path, plan: dict) -> None:
    """Make `out` ours, or refuse it if another build, or anything else, lives there."""
    out.mkdir(parents=True, exist_ok=True)
    unfinished(out, plan)
    write_atomically(out / PLAN, json.dumps(plan, indent=1).encode())


def _same_source(one: dict, other: dict) -> bool:
    """An archive that has only moved is the same source; of one that was read before contents counted, sizes tell."""
    apart = {"root": None, "contents": None}
    return {**one, **apart} == {**other, **apart}


def _first_change(one: dict, other: dict) -> str | None:
    """The first image of both whose files are not the same."""
    then, now = one.get("contents", {}), other.get("contents", {})
    return next((id_ for id_ in now if id_ in then and now[id_] != then[id_]), None)


def longest_id(labels: Mapping[str, Label]) -> int:
    """Characters of the longest id that the name of every entry, cached features too, leaves room for in a tar."""
    keys = [*codec.PICTURES, *labels]
    tails = (f".{key}.{extension}" for key in keys for extension in codec.entry(key, labels).extensions)
    return tarfile.LENGTH_NAME - max(map(len, tails))


def write_shard(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (name, bytes) entries."""
    write_atomically(path, _tar_bytes(entries))


def record(path: Path, ids: Sequence[str]) -> dict:
    """What the index says of a written shard."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return {"name": path.name, "samples": len(ids), "bytes": len(data), "sha256": digest, "ids": list(ids)}


def _tar_bytes(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of (name, bytes) entries, the same bytes for the same entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            member = tarfile.TarInfo(name)  # its defaults are fixed: mtime 0, uid 0, mode 644
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def index(
    info: Described,
    split: str,
    keys: Sequence[str],
    shards: list[dict],
    plan: dict,
    facts: Mapping[str, Any] | None = None,
) -> dict:
    """`index.json` of shards that hold `keys` of the data set `info`, and `facts` of it (docs/contracts.md)."""
    definitions = {task: dict(definition) for task, definition in info.definitions.items()}
    return {
        "format": FORMAT,
        "dataset": info.dataset,
        "split": split,
        "tasks": list(info.tasks),
        "classes": {task: list(names) for task, names in info.classes.items()},
        "boundary_max_dist": info.boundary_max_dist,
        **({"definitions": definitions} if definitions else {}),
        "encodings": {key: codec.entry(key, info.labels).meaning for key in keys},
        "samples": sum(shard["samples"] for shard in shards),
        **(facts or {}),
        "shards": shards,
        "source": plan,
    }


def finish(out: Path, index: dict) -> None:
    """The index makes a set whole; what only an unfinished one needs goes."""
    write_atomically(out / INDEX, json.dumps(index, indent=1).encode())
    for left_over in (out / PLAN, *out.glob(".*.part")):  # a killed builder leaves half a file under another name
        left_over.unlink(missing_ok=True)
