"""Files that are there whole or not at all, and JSON that any reader takes."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, Iterator

from fgmoe_dist.errors import UserError

PARTIAL = ".part"  # how the name of a file ends that is still being written


def check_writable(path: Path, option: str) -> None:
    """Raise `UserError` if `path` cannot become a file; before the work rather than after it."""
    if path.is_dir() or not path.parent.is_dir():
        fault = "is a folder" if path.is_dir() else f"lies in no folder: make {path.parent}, or"
        raise UserError(f"{option} {path} {fault}{';' if path.is_dir() else ''} name another file")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: on the way out that file is flushed to disk and takes `path`'s place.

    After an error nothing has changed. Makes the parent folder. The process id in the name keeps two writers in one
    folder apart; a process that is killed leaves a hidden `.part` file, which nobody takes for the real one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Writes `data` as the whole of `path`, or leaves `path` as it was."""
    with whole_file(path) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes nested figures. JSON knows no NaN and no infinity: they become null."""
    return write_atomically(path, json.dumps(plain(value), indent=2) + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) or (hasattr(value, "__float__") and not isinstance(value, (int, str))):
        return float(value) if math.isfinite(value) else None
    return value
