"""The folder of a run's checkpoints: which are whole, latest and best, what each says of itself, which may go.

    checkpoints/latest, best          small files that name a folder; hints, which may be stale or gone. `latest` says
                                      `none` where a run has left all that is there for another run's checkpoint
    checkpoints/step-00000120/        a whole checkpoint
    checkpoints/.step-00000160.partial/   one being written, or left by a run that died: no reader looks at it

Only rank 0 changes names here. What lies in a checkpoint beside `state.json` is `checkpoints/checkpoint.py`'s.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping, Optional

from pydantic import TypeAdapter, ValidationError

from fgmoe_dist.checkpoints.integrity import SEAL, damaged_files, is_as_sealed, sealed
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import to_json, write_atomically

FORMAT = 1
POINTERS = ("latest", "best")
ABANDONED = "none"

_NAME, _PARTIAL = re.compile(r"step-\d{8,}"), re.compile(r"\.step-\d{8,}(\.old)?\.partial")
_CURE = "; name another checkpoint"
_NO_MERIT = (0, -math.inf)

# What a configuration becomes for a model that is whole on one process and only predicts.
WHOLE = {
    "parallel": {"ep_size": 1},
    "experts": {"backend": "fused", "kernel": "auto"},
    "train": {"activation_checkpointing": False},
}


@dataclass(frozen=True)
class CheckpointState:
    """`state.json`: what a checkpoint says of itself. Also the `DatasetInfo` that tasks are made from."""

    step: int
    config: dict[str, Any]
    tasks: list[str]
    classes: dict[str, list[str]]
    boundary_max_dist: float
    encoder_checksum: str
    world: int
    ep_size: int
    zero_stage: int
    # How good it is, higher being better, over `scored` tasks (0: all): those whose headline was a number.
    score: Optional[float] = None
    scored: int = 0
    # Names of the buffers it holds. One that the model has and this list has not came into the model later.
    buffers: list[str] = field(default_factory=list)
    # Of the weighting method: its `kind` and what it has to remember. Empty in checkpoints from before there were any.
    weighting: dict[str, Any] = field(default_factory=dict)
    # By task, what `train.class_balance` has counted.
    class_balance: dict[str, list[float]] = field(default_factory=dict)
    # What the data set says of tasks that are its own (`ShardSet.definitions`).
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    # SHA-256 by the name of a file. Empty in checkpoints from before there were any, which cannot be verified.
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def changed_config(self, *changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The configuration it was trained with, some values of some sections changed, later changes last."""
        changed = dict(self.config)
        for change in changes:
            for section, values in change.items():
                if isinstance(below := changed.get(section, {}), dict):  # else the reader of the configuration says so
                    changed[section] = {**below, **values}
        return changed


class OtherFormat(UserError):
    """A checkpoint of another version of this program, which nothing is wrong with."""


def read_state(checkpoint: Path) -> CheckpointState:
    """`state.json` of a checkpoint. UserError if it cannot be read, OtherFormat if it is of another format."""
    try:
        text = (checkpoint / "state.json").read_text()
        values = json.loads(text)
        if values.get("format") != FORMAT:
            raise OtherFormat(
                f"checkpoint {checkpoint}: format {values.get('format')}; this version reads format {FORMAT}"
            )
        state = TypeAdapter(CheckpointState).validate_json(text, strict=True)
        if not is_as_sealed(values):
            raise ValueError(
                "its checksum is not that of what was written; where somebody has edited it, take out the line"
                f" `{SEAL}`"
            )
        # NaN is no number to compare by; it was written so before there was null.
        return state if _is_number(state.score) else replace(state, score=None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        what = str(error)
        if isinstance(error, ValidationError):
            what = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"checkpoint {checkpoint}: state.json cannot be read ({what}){_CURE}") from None


def _write_state(checkpoint: Path, state: CheckpointState) -> None:
    values = json.loads(to_json(asdict(state)))  # as a reader will have them
    write_atomically(checkpoint / "state.json", to_json(sealed(values), indent=1))


def damages(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files, a sentence each; none where all is as written.

    One from before there were checksums is read as far as its `state.json` alone. Raises OtherFormat.
    """
    try:
        state = read_state(checkpoint)
    except OtherFormat:
        raise
    except UserError as error:
        return [str(error).removesuffix(_CURE)]
    return [f"checkpoint {checkpoint}: {clause}" for clause in damaged_files(checkpoint, state.files)]


def check_integrity(checkpoint: Path) -> None:
    """UserError where a file of it is not what was written."""
    if found := damages(checkpoint):
        raise UserError(f"{'; '.join(found)}; name another checkpoint (`fgmoe checkpoint list` shows which are sound)")


def find_checkpoint(path: Path) -> Optional[Path]:
    """The checkpoint that `path` means: one itself, `latest` or `best`, a `checkpoints` folder, or a run folder.

    Of a folder the one that `latest` names, which a run may have gone back to; where that is not whole, the newest
    before it; where `latest` says nothing, the newest that is whole. None if there is none.
    """
    if path.name in POINTERS and path.is_file():
        return _pointed(path.parent, path.name)
    for folder in (path, path / "checkpoints"):
        if (folder / "state.json").is_file():
            return folder
        latest = _pointed(folder, "latest")
        if _read_pointer(folder, "latest") == ABANDONED or (latest is not None and _is_whole(latest)):
            return latest
        whole = [found for found in all_checkpoints(folder) if _is_whole(found)]
        before = [found for found in whole if latest is not None and found.name <= latest.name]
        if whole:
            return max(before or whole)
    return None


def is_checkpoint(path: Path) -> bool:
    """Whether `path` names one checkpoint, rather than a folder of some."""
    return (path / "state.json").is_file() or (path.name in POINTERS and path.is_file())


def checkpoints_before(checkpoint: Path) -> list[Path]:
    """It and the whole ones of earlier steps in its folder, the newest first."""
    found = all_checkpoints(checkpoint.parent)
    return [c for c in reversed(found) if c.name <= checkpoint.name and _is_whole(c)]


def pointers_to(checkpoint: Path) -> list[str]:
    """Which of `POINTERS` name it."""
    return [pointer for pointer in POINTERS if _pointed(checkpoint.parent, pointer) == checkpoint]


def stale_pointer(folder: Path) -> Optional[str]:
    """What `latest` names, where no whole checkpoint of this name is there."""
    latest = _pointed(folder, "latest")
    return None if latest is None or _is_whole(latest) else latest.name


def all_checkpoints(folder: Path) -> list[Path]:
    """Those of a folder by step, whole or not; what else a person keeps beside them is not ours."""
    return sorted(found for found in folder.glob("step-*") if _NAME.fullmatch(found.name) and found.is_dir())


def _is_whole(checkpoint: Path) -> bool:
    """Whether it has its name from `publish`: what says what it is comes last. It may have been damaged since."""
    return (checkpoint / "state.json").is_file()


def whole_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, if there is one."""
    return folder / f"step-{step:08d}"


def partial_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is one."""
    return folder / f".step-{step:08d}.partial"


def drop_partial(folder: Path) -> None:
    """Removes what a run that died has left half written."""
    for partial in folder.glob(".step-*.partial"):
        if _PARTIAL.fullmatch(partial.name):
            shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, state: CheckpointState, keep: int) -> None:
    """Makes a wholly written `partial` the latest checkpoint; drops all but the newest `keep` and the best.

    Each step is on the disk before the next, so that a power cut finds the old checkpoint or the new one.
    """
    folder, final = partial.parent, whole_folder(partial.parent, state.step)
    _write_state(partial, state)
    _sync(partial)
    abandoned = folder / f".{final.name}.old.partial"
    if final.exists():  # of a branch that a resumed run has left; a moment without it, not the time of removing it
        final.rename(abandoned)
    partial.rename(final)
    _sync(folder)
    _point(folder, "latest", final.name)
    shutil.rmtree(abandoned, ignore_errors=True)
    _prune(folder, keep)


def mark_score(checkpoint: Path, score: Optional[float], scored: int = 0) -> None:
    """Notes in a checkpoint how good it is, higher being better, and calls it `best` if it is. Rank 0 alone.

    Args:
        score: over `scored` tasks; one over more tasks is better. None or NaN: nobody can say, and it is not `best`.
        scored: 0 stands for all tasks.
    """
    folder = checkpoint.parent
    state = read_state(checkpoint)
    state = replace(state, score=score if _is_number(score) else None, scored=scored)
    if _merit(state) > _best_merit(folder, but=checkpoint):
        _point(folder, "best", checkpoint.name)
    _write_state(checkpoint, state)


def remove(checkpoint: Path) -> None:
    """Takes a checkpoint out of its folder. What named it names the newest before it, or nothing."""
    folder, named = checkpoint.parent, pointers_to(checkpoint)
    gone = folder / f".{checkpoint.name}.old.partial"
    before = checkpoints_before(checkpoint)[1:]
    if "latest" in named and before:
        _point(folder, "latest", before[0].name)
    checkpoint.rename(gone)  # no reader finds it half there
    for pointer in named:
        if pointer == "best" or not before:
            (folder / pointer).unlink(missing_ok=True)
    shutil.rmtree(gone)


def rewind(folder: Path, checkpoint: Path) -> None:
    """Makes `checkpoint` the latest of `folder`, which a run goes on from; a later `best` is of an abandoned branch.

    Where `checkpoint` is another run's, all that `folder` holds is.
    """
    if is_in(folder, checkpoint):
        best = _pointed(folder, "best")
        if best is not None and best.name > checkpoint.name:
            (folder / "best").unlink()
        _point(folder, "latest", checkpoint.name)
    else:
        for pointer in POINTERS:
            (folder / pointer).unlink(missing_ok=True)
        if all_checkpoints(folder):
            _point(folder, "latest", ABANDONED)


def is_in(folder: Path, checkpoint: Path) -> bool:
    """Whether `checkpoint` is one of `folder`'s own."""
    return checkpoint.parent.resolve() == folder.resolve()


def _point(folder: Path, pointer: str, name: str) -> None:
    write_atomically(folder / pointer, name + "\n")


def _pointed(folder: Path, pointer: str) -> Optional[Path]:
    """The checkpoint that a pointer names, there or not; None for a pointer that names none."""
    name = _read_pointer(folder, pointer)
    return folder / name if _NAME.fullmatch(name) else None


def _read_pointer(folder: Path, pointer: str) -> str:
    try:
        return (folder / pointer).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _is_number(score: Any) -> bool:
    return isinstance(score, (int, float)) and math.isfinite(score)


def _merit(state: CheckpointState) -> tuple[int, float]:
    """What checkpoints are compared by; `_NO_MERIT` is that of one without a score."""
    return _NO_MERIT if state.score is None else (state.scored or len(state.tasks), state.score)


def _best_merit(folder: Path, but: Path) -> tuple[int, float]:
    best = _pointed(folder, "best")
    if best is None or best == but or not _is_whole(best):
        return _NO_MERIT
    try:
        return _merit(read_state(best))
    except UserError:  # damaged since: any other is better
        return _NO_MERIT


def _prune(folder: Path, keep: int) -> None:
    # By age and not by step: a run resumed further back has later steps of an abandoned branch beside it.
    ours = all_checkpoints(folder)
    by_age = sorted(ours, key=lambda path: path.stat().st_mtime)
    kept = {*by_age[-keep:], _pointed(folder, "best"), _pointed(folder, "latest")}
    for old in set(ours) - kept:
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
