"""The folder of a run's checkpoints: which are whole, latest and best, what each says of itself, which may go.

    checkpoints/latest, best          small files that name a folder
    checkpoints/step-00000120/        a whole checkpoint
    checkpoints/.step-00000160.partial/   one being written, or left by a run that died: no reader looks at it

Only rank 0 changes names here. What lies in a checkpoint beside `state.json` is `checkpoints/checkpoint.py`'s.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping, Optional

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_atomically

FORMAT = 1

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
    score: Optional[float] = None
    # Names of the buffers it holds. One that the model has and this list has not came into the model later.
    buffers: list[str] = field(default_factory=list)
    # Of the weighting method: its `kind` and what it has to remember. Empty in checkpoints from before there were any.
    weighting: dict[str, Any] = field(default_factory=dict)
    # What the data set says of tasks that are its own (`ShardSet.definitions`).
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def changed_config(self, *changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The configuration it was trained with, some values of some sections changed, later changes last."""
        changed = dict(self.config)
        for change in changes:
            changed.update({section: {**changed[section], **values} for section, values in change.items()})
        return changed


def read_state(checkpoint: Path) -> CheckpointState:
    """`state.json` of a checkpoint. UserError if it cannot be read, or is of another format."""
    try:
        values = json.loads((checkpoint / "state.json").read_text())
        if values.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {checkpoint}: format {values.get('format')}; this version reads format {FORMAT}"
            )
        return CheckpointState(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"checkpoint {checkpoint}: state.json cannot be read ({error}); name another checkpoint"
        ) from None


def find_checkpoint(path: Path) -> Optional[Path]:
    """The checkpoint that `path` means: one itself, a `checkpoints` folder, or a run folder. None if there is none."""
    for folder in (path, path / "checkpoints"):
        if (folder / "state.json").is_file():
            return folder
        for pointer in ("latest", "best"):
            found = _pointed(folder, pointer)
            if found is not None and (found / "state.json").is_file():
                return found
    return None


def whole_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, if there is one."""
    return folder / f"step-{step:08d}"


def partial_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is one."""
    return folder / f".step-{step:08d}.partial"


def drop_partial(folder: Path) -> None:
    """Removes what a run that died has left half written."""
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, state: CheckpointState, keep: int) -> None:
    """Makes a wholly written `partial` the latest checkpoint; drops all but the newest `keep` and the best.

    Each step is on the disk before the next, so that a power cut finds the old checkpoint or the new one.
    """
    folder, final = partial.parent, whole_folder(partial.parent, state.step)
    write_atomically(partial / "state.json", json.dumps(asdict(state), indent=1))
    _sync(partial)
    abandoned = folder / f".{final.name}.old.partial"
    if final.exists():  # of a branch that a resumed run has left; a moment without it, not the time of removing it
        final.rename(abandoned)
    partial.rename(final)
    _sync(folder)
    _point(folder, "latest", final.name)
    shutil.rmtree(abandoned, ignore_errors=True)
    _prune(folder, keep)


def mark_score(checkpoint: Path, score: float) -> None:
    """Notes in a checkpoint how good it is, higher being better, and calls it `best` if it is. Rank 0 alone."""
    folder = checkpoint.parent
    if score > _best_score(folder):
        _point(folder, "best", checkpoint.name)
    state = replace(read_state(checkpoint), score=score)
    write_atomically(checkpoint / "state.json", json.dumps(asdict(state), indent=1))


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
        for pointer in ("latest", "best"):
            (folder / pointer).unlink(missing_ok=True)


def is_in(folder: Path, checkpoint: Path) -> bool:
    """Whether `checkpoint` is one of `folder`'s own."""
    return checkpoint.parent.resolve() == folder.resolve()


def _point(folder: Path, pointer: str, name: str) -> None:
    write_atomically(folder / pointer, name + "\n")


def _pointed(folder: Path, pointer: str) -> Optional[Path]:
    return folder / (folder / pointer).read_text().strip() if (folder / pointer).is_file() else None


def _best_score(folder: Path) -> float:
    best = _pointed(folder, "best")
    score = read_state(best).score if best is not None and best.is_dir() else None
    return float("-inf") if score is None else score


def _prune(folder: Path, keep: int) -> None:
    # By age and not by step: a run resumed further back has later steps of an abandoned branch beside it.
    by_age = sorted(folder.glob("step-*"), key=lambda path: path.stat().st_mtime)
    kept = {*by_age[-keep:], _pointed(folder, "best"), _pointed(folder, "latest")}
    for old in set(folder.glob("step-*")) - kept:
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
