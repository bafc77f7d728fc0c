"""Where results go: looked at before the work, and never a folder that holds what is not ours.

A folder is ours if it is empty, if a file `.fgmoe` says so, or by what such a folder always has. Nothing is written
into any other, and nothing in it is replaced or removed (docs/inputs.md).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import PARTIAL, write_atomically

MARKER = ".fgmoe"
PROBE_BYTES = 4096  # a full disk still takes an empty file

# What lies in a folder without being anybody's work: `stop` may be there before the run that it stops.
_NOTHING = {"stop", "lost+found", ".gitkeep", ".gitignore", ".DS_Store"}


@dataclass(frozen=True)
class Kind:
    """What a folder holds, in words, and whether a folder without a marker is one of these."""

    what: str
    is_known: Callable[[Path], bool]


def _is_run(folder: Path) -> bool:
    about = _json(folder / "about.json")
    if "run_folder_id" in _mapping(about.get("tags")) or about.get("status") in _STATUSES:
        return True
    states = (folder / "checkpoints").glob("step-*/state.json")
    return any("encoder_checksum" in _json(path) for path in states)


def _is_shards(folder: Path) -> bool:
    index, plan = _json(folder / "index.json"), _json(folder / "plan.json")
    return {"format", "dataset", "shards"} <= index.keys() or "fingerprint" in plan


def _is_results(folder: Path) -> bool:
    """Panels, each of them with predictions beside it."""
    panels, others = folder / "panels", [path for path in folder.iterdir() if path.name != "panels"]
    if not panels.is_dir() or not all(path.is_dir() for path in others):
        return False
    return all(
        any((other / f"{panel.stem}{suffix}").is_file() for other in others for suffix in (".png", ".npy"))
        for panel in panels.iterdir()
    )


def _is_dumped(folder: Path) -> bool:
    images = [path.name.removesuffix(".image.png") for path in folder.glob("*.image.png")]
    return bool(images) and all(path.name.partition(".")[0] in images for path in folder.iterdir())


def _is_report(folder: Path) -> bool:
    try:
        return b"Scored by fgmoe_dist" in (folder / "index.html").read_bytes()
    except OSError:
        return False


_STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")

RUN = Kind("a run", _is_run)
SHARDS = Kind("shards", _is_shards)
RESULTS = Kind("predictions", _is_results)
DUMPED = Kind("dumped samples", _is_dumped)
REPORT = Kind("a report", _is_report)
ROOMS = Kind("a set of rooms", lambda folder: (folder / "rooms.json").is_file())


def check_output(path: Path, option: str, kind: Kind | None = None, make_parents: bool = False) -> None:
    """UserError unless `path` can become a file, or with `kind` a folder of that kind; leaves nothing behind.

    Args:
        option: what named the path: `--json`, or a key of the configuration.
        make_parents: whether a file's folder is made where it is not there, as a folder's always is.
    """
    named = _named(path, option)
    try:
        if kind is None:
            _check_file(path, named, make_parents)
        else:
            _check_folder(path, named, kind)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        what = "file" if kind is None else "folder"
        raise UserError(f"{named} cannot be written ({reason}); make room there, or name another {what}") from None


def claim(folder: Path, option: str, kind: Kind, mark: bool = True) -> None:
    """Makes `folder` where need be, and ours; UserError if it is another's. One process does it for all.

    Args:
        mark: with a file; not where what is written into it at once tells as much.
    """
    check_output(folder, option, kind)
    folder.mkdir(parents=True, exist_ok=True)
    if mark and _marked(folder) != kind.what:
        write_atomically(
            folder / MARKER, f"{kind.what}\nfgmoe_dist writes into this folder, and removes what is old.\n"
        )


def is_ours(folder: Path, kind: Kind) -> bool:
    """Whether an existing folder is empty or of this kind."""
    return not _strangers(folder) or _marked(folder) == kind.what or kind.is_known(folder)


def _named(path: Path, option: str) -> str:
    return f"{option} {path}" if option.startswith("-") else f"{option}={path}:"


def _check_file(path: Path, named: str, make_parents: bool) -> None:
    if path.is_dir():
        raise UserError(f"{named} is a folder; name another file")
    if not path.parent.is_dir() and not make_parents:
        raise UserError(f"{named} lies in no folder: make {path.parent}, or name another file")
    if path.exists():
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return  # a device or a pipe, which a trial would be part of
        if not mode & 0o222 or not os.access(path, os.W_OK):
            raise UserError(f"{named} is write-protected; name another file")
    _probe(path.parent, path.name)


def _check_folder(folder: Path, named: str, kind: Kind) -> None:
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{named} is a link to nothing; name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{named} is a file; name a folder")
    if folder.is_dir() and not is_ours(folder, kind):
        there = _strangers(folder)
        some = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise UserError(
            f"{named} holds what is not {kind.what} of ours ({some}), and none of it is touched; name a new or empty"
            f" folder"
        )
    _probe(folder, "")


def _probe(folder: Path, name: str) -> None:
    """OSError unless a file may be made in `folder`, or in the nearest folder above that there is. Leaves no trace."""
    if len(os.fsencode(name)) > 255:
        raise OSError(errno.ENAMETOOLONG, "File name too long")
    if "\0" in f"{folder}{name}":
        raise ValueError("embedded null character")
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))  # also a link to nothing
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(bytes(PROBE_BYTES))


def _strangers(folder: Path) -> list[str]:
    """Names of what lies in a folder."""
    names = sorted(path.name for path in folder.iterdir())
    return [n for n in names if n not in {*_NOTHING, MARKER} and not (n.startswith(".") and n.endswith(PARTIAL))]


def _marked(folder: Path) -> str | None:
    """What the marker says that the folder holds."""
    try:
        return (folder / MARKER).read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None


def _json(path: Path) -> dict[str, Any]:
    """A mapping in a JSON file; empty where there is none."""
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
