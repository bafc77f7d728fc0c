"""Room for checkpoints, looked for before the work rather than met at its end."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from fgmoe_dist.checkpoints.folder import all_checkpoints
from fgmoe_dist.errors import UserError

_BYTES = 3 * 4  # of a trained number: its weight and its two moments, fp32
_GIB = 2**30


def free_bytes(folder: Path) -> int:
    """What the disk has room for, where `folder` is or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def check_room_for_run(folder: Path, trained: int, keep: int) -> None:
    """UserError where the checkpoints of a run will not fit beside what is there.

    Args:
        folder: of its checkpoints.
        trained: numbers that it trains.
        keep: `train.keep_checkpoints`. The best one and the one being written come on top.
    """
    one = _BYTES * trained
    more = max(1, keep + 2 - len(all_checkpoints(folder)))
    if (free := free_bytes(folder)) < more * one:
        raise UserError(
            f"run.dir={folder.parent}: {more} checkpoints of {_told(one)} will need {_told(more * one)}, and"
            f" {_told(free)} are free; make room, lower train.keep_checkpoints={keep}, or name another disk's run.dir"
        )


def check_room(folder: Path, needed: int) -> None:
    """OSError, as from a full disk, where `needed` bytes will not fit into `folder`."""
    if (free := free_bytes(folder)) < needed:
        raise OSError(errno.ENOSPC, f"it needs {_told(needed)}, and {_told(free)} are free")


def _told(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / 2**20:.2f} MiB"
