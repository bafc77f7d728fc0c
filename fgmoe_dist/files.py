"""Files that are there whole or not at all, and JSON that any reader takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from fgmoe_dist.errors import CannotWrite

if TYPE_CHECKING:
    import numpy as np

PARTIAL = ".part"  # how the name of a file ends that is still being written
_LONG_NAME = 200  # bytes; file systems take 255, and a name beside it is longer


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: on the way out that file is flushed to disk and takes `path`'s place.

    After an error nothing has changed; CannotWrite where it was the disk's. Makes the parent folder. Process and thread
    in the name keep two writers in one folder apart; a process that is killed leaves a hidden `.part` file, which
    nobody takes for the real one. A link stays a link, and a device such as /dev/stdout is written to as it is.
    """
    beside = None
    try:
        if _is_special(path):
            yield path
            return
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target)
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        raise cannot_write(error, path) from error
    finally:
        if beside is not None:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Whether `path` is a device or a pipe, which nothing may take the place of."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _beside(path: Path) -> Path:
    name = os.fsencode(path.name)
    word = path.name if len(name) <= _LONG_NAME else hashlib.sha256(name).hexdigest()
    return path.with_name(f".{word}.{os.getpid()}-{threading.get_native_id()}{PARTIAL}")


def cannot_write(error: OSError, path: Path) -> CannotWrite:
    """`error`, met while writing `path`, as the user is to read it."""
    if isinstance(error, CannotWrite):
        return error
    return CannotWrite(error.errno or 0, error.strerror or str(error), str(path))


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Writes `data` as the whole of `path`, or leaves `path` as it was and raises CannotWrite."""
    with whole_file(path) as beside:
        beside.write_bytes(data if isinstance(data, bytes) else data.encode(errors="backslashreplace"))
    return path


def append_line(path: Path, line: str) -> None:
    """Adds a line to `path` by a single write. CannotWrite where that fails; then the last line may be torn."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise cannot_write(error, path) from error


def write_png(path: Path, image: np.ndarray) -> Path:
    """Writes a picture, uint8 `[H, W, 3]` or `[H, W]`, whole."""
    from PIL import Image

    with whole_file(path) as beside, open(beside, "wb") as file:
        Image.fromarray(image).save(file, "PNG")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes nested figures. JSON knows no NaN and no infinity: they become null."""
    return write_atomically(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """The one way to JSON: what `plain` makes of `value`, so that strict readers take it."""
    return json.dumps(plain(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) or (hasattr(value, "__float__") and not isinstance(value, (int, str))):
        return float(value) if math.isfinite(value) else None
    return value
