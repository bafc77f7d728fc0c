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
_OF_FILES = ("samples", "fingerprint", "contents")  # entries of a plan that a repair of source files changes
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
    source = _plan_in(json.loads((out / INDEX).read_bytes()).get("source", {}))
    # A set that was built before contents counted is known by the sizes in its fingerprint.
    changed = _first_change(source, plan)
    if changed is not None or not _is_same(source, plan, but=("root", "contents")):
        why = f", made before the files of image {changed} changed" if changed else ""
        raise UserError(f"{out} already holds other shards{why}: give another --out, or remove that folder")
    return True


def claim(out: Path, plan: dict) -> None:
    """Make `out` ours, or refuse it if another build, or anything else, lives there.

    Of an unfinished build whose sources have changed since, as where a bad file was repaired or the description
    corrected, the shards that are still good stay; where that cannot be told, it begins again.
    """
    if not (out / PLAN).is_file() and any(out.glob("*.tar")):
        raise UserError(f"{out} holds tars without an index: give another --out, or remove them")
    claim_folder(out, "--out", SHARDS, mark=False)
    if (out / PLAN).is_file():
        before = _read_plan(out)
        if not _is_same(before, plan, but=("root", *_OF_FILES)):
            raise UserError(f"{out} holds an unfinished build of something else: give another --out, or remove it")
        if not _is_same(before, plan, but=("root",)):
            print(f"{out}: the sources have changed since this build was begun; what they concern is built again")
            then = tars(before)
            good = {name for name, now in tars(plan).items() if [*then.get(name, {}).items()] == [*now.items()]}
            for shard in (*out.glob(_SHARDS), *out.glob(f"view-*/{_SHARDS}")):
                if shard.name not in good:
                    shard.unlink()
    write_atomically(out / PLAN, to_json(plan, indent=1))


def tars(plan: Mapping) -> dict[str, dict[str, str]]:
    """The name of every tar of a plan, and the ids in it with their contents; none where these are not known."""
    images, size = list(plan.get("contents", {}).items()), plan.get("samples_per_shard", 1)
    return {
        f"{plan['dataset']}-{plan['split']}-{start // size:06d}.tar": dict(images[start : start + size])
        for start in range(0, len(images), size)
    }


def _first_change(one: Mapping, other: Mapping) -> str | None:
    """The first image of both plans whose files are not the same."""
    then, now = one.get("contents", {}), other.get("contents", {})
    return next((id_ for id_ in now if id_ in then and now[id_] != then[id_]), None)


def longest_id(labels: Mapping[str, Label]) -> int:
    """Characters of the longest id that the name of every entry, cached features too, leaves room for in a tar."""
    keys = [*codec.PICTURES, *labels]
    tails = (f".{key}.{extension}" for key in keys for extension in codec.entry(key, labels).extensions)
    return tarfile.LENGTH_NAME - max(map(len, tails))


def _read_plan(out: Path) -> dict:
    try:
        return _plan_in(json.loads((out / PLAN).read_bytes()))
    except ValueError:
        return {}


def _plan_in(found: object) -> dict:
    """A plan as a file has it that anybody may have edited; empty, which is no plan's, where it cannot be one."""
    is_plan = isinstance(found, dict) and isinstance(found.get("contents", {}), dict)
    return found if is_plan else {}


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
    write_atomically(out / INDEX, to_json(index, indent=1))
    for left_over in (out / PLAN, *out.glob(".*.part")):  # a killed builder leaves half a file under another name
        left_over.unlink(missing_ok=True)
