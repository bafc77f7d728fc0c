"""Files that are there whole or not at all, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from fgmoe_dist.errors import UserError


def check_writable(path: Path, option: str) -> None:
    """Raise `UserError` if `path` cannot become a file; before the work rather than after it."""
    if path.is_dir() or not path.parent.is_dir():
        fault = "is a folder" if path.is_dir() else f"lies in no folder: make {path.parent}, or"
        raise UserError(f"{option} {path} {fault}{';' if path.is_dir() else ''} name another file")


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Writes beside `path`, flushes to disk, renames. Makes the parent folder.

    The process id keeps two writers in one folder apart.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
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
