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
from fgmoe_dist.data.shard_index import FORMAT
from fgmoe_dist.data.shardset import INDEX, ShardSet
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import to_json, write_atomically
from fgmoe_dist.labels import Label
from fgmoe_dist.outputs import SHARDS
from fgmoe_dist.outputs import claim as claim_folder

PLAN = "plan.json"  # what an unfinished build in a folder is of; gone once there is an index
_OF_FILES = ("samples", "fingerprint")  # entries of a plan that a repair of source files changes
_SHARDS = "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"


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
    if not _is_same(json.loads((out / INDEX).read_bytes()).get("source", {}), plan, but=("root",)):
        raise UserError(f"{out} already holds other shards: give another --out, or remove that folder")
    return True


def claim(out: Path, plan: dict) -> None:
    """Make `out` ours, or refuse it if another build, or anything else, lives there.

    An unfinished build whose sources have changed since, as where a bad file was repaired, begins again.
    """
    if not (out / PLAN).is_file() and any(out.glob("*.tar")):
        raise UserError(f"{out} holds tars without an index: give another --out, or remove them")
    claim_folder(out, "--out", SHARDS, mark=False)
    if (out / PLAN).is_file():
        before = _read_plan(out)
        if not _is_same(before, plan, but=("root", *_OF_FILES)):
            raise UserError(f"{out} holds an unfinished build of something else: give another --out, or remove it")
        if not _is_same(before, plan, but=("root",)):
            print(f"{out}: the source files have changed since this build was begun; it begins again", flush=True)
            for shard in (*out.glob(_SHARDS), *out.glob(f"view-*/{_SHARDS}")):
                shard.unlink()
    write_atomically(out / PLAN, to_json(plan, indent=1))


def _read_plan(out: Path) -> dict:
    try:
        return dict(json.loads((out / PLAN).read_bytes()))
    except (ValueError, TypeError):
        return {}


def _is_same(one: Mapping, other: Mapping, but: Sequence[str]) -> bool:
    """Whether two plans are of one set; `root` may differ, as an archive that has only moved is the same source."""
    return {**one, **dict.fromkeys(but)} == {**other, **dict.fromkeys(but)}


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


def index(info: Described, split: str, keys: Sequence[str], shards: list[dict], plan: dict) -> dict:
    """`index.json` of shards that hold `keys` of the data set `info` (docs/contracts.md)."""
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
        "shards": shards,
        "source": plan,
    }


def finish(out: Path, index: dict) -> None:
    """The index makes a set whole; what only an unfinished one needs goes."""
    write_atomically(out / INDEX, to_json(index, indent=1))
    for left_over in (out / PLAN, *out.glob(".*.part")):  # a killed builder leaves half a file under another name
        left_over.unlink(missing_ok=True)
