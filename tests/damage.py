"""Shards that no builder would write: the entries of a good one changed, with an index that agrees."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Entries = list[tuple[tarfile.TarInfo, bytes]]


def rewrite(folder: Path, change: Callable[[Entries], Entries], name: str = "nyud-train-000000.tar") -> None:
    """Build a shard anew from its entries, changed, and make the index agree with its bytes."""
    with tarfile.open(folder / name) as tar:
        entries = [(member, tar.extractfile(member).read()) for member in tar]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in change(entries):
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()
    (folder / name).write_bytes(data)
    index = json.loads((folder / "index.json").read_text())
    record = next(record for record in index["shards"] if record["name"] == name)
    record.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "index.json").write_text(json.dumps(index))


def replace(key: str, data: bytes) -> Callable[[Entries], Entries]:
    """Other bytes for a key of the first sample."""
    return lambda entries: [(m, data if f".{key}." in m.name and i < 6 else d) for i, (m, d) in enumerate(entries)]


def drop(key: str) -> Callable[[Entries], Entries]:
    """The first sample without a key."""
    return lambda entries: [(m, d) for i, (m, d) in enumerate(entries) if i >= 6 or f".{key}." not in m.name]


def add(name: str, **fields: object) -> Callable[[Entries], Entries]:
    """One more entry: a pickle, or what the fields of its header make of it."""

    def change(entries: Entries) -> Entries:
        member = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(member, field, value)
        return [*entries, (member, b"" if fields else pickle.dumps(print))]

    return change


def npy(array: np.ndarray) -> bytes:
    """An .npy file's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def png(array: np.ndarray) -> bytes:
    """A PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()
