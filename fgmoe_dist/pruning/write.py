"""A run folder with a pruned model in it, which evaluates, predicts, exports and trains on like any other."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fgmoe_dist.checkpoints.folder import CheckpointState, all_checkpoints, partial_folder, publish
from fgmoe_dist.checkpoints.integrity import checksums
from fgmoe_dist.config import Config, build_config, to_yaml
from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking.run_folder import RunFolder


def check_free(folder: Path, option: str) -> None:
    """UserError where a run lies that a pruned model would take the place of, finished or not."""
    run = RunFolder(folder)
    if run.about() or all_checkpoints(run.checkpoints):
        raise UserError(f"{option} {folder}: holds a run, which would be lost; name another folder, or remove it")


def write_run(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: CheckpointState,
    changes: Mapping[str, Any],
    about: dict[str, Any],
) -> Config:
    """Writes `tensors` as the one checkpoint of a new run; returns its configuration.

    Args:
        folder: of the run; made, or a run's already.
        state: of the checkpoint that they come from.
        changes: of its configuration, by section; those outside sections, such as `tasks`, by key.
        about: further facts for `about.json`.

    UserError where it cannot be written; nothing is left of it then.
    """
    values = dict(state.config)
    for key, value in {**changes, "run": {"dir": str(folder), "name": folder.name}}.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    config = build_config(values, str(folder), defined_tasks=state.definitions)
    run = RunFolder(folder)
    run.create(to_yaml(config))
    partial = partial_folder(run.checkpoints, state.step)
    state = replace(
        state, config=config.model_dump(mode="json"), tasks=list(config.tasks), score=None, scored=0, ep_size=1,
        world=1, weighting={},
    )  # fmt: skip
    try:
        names = _write(partial, tensors)
        publish(partial, replace(state, files=checksums(partial, names)), keep=1)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        what = " ".join(str(error).split())
        raise UserError(f"{folder}: the pruned model cannot be written ({what}); make room, or name another") from None
    run.update_about(status="FINISHED", **about)
    return config


def _write(partial: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """The files of a checkpoint of one rank; their names."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    experts = {name: value for name, value in tensors.items() if ".experts." in name}
    others = {name: value for name, value in tensors.items() if name not in experts}
    files = {"decoder.safetensors": others, **({"experts-000-of-001.safetensors": experts} if experts else {})}
    for name, values in files.items():
        save_file(values, partial / name)
    return list(files)
