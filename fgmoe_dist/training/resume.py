"""Where a run goes on from, and what it leaves standing in its folder of what was there."""

from __future__ import annotations

from pathlib import Path

import psutil

from fgmoe_dist.checkpoints.checkpoint import resume
from fgmoe_dist.checkpoints.folder import (
    CheckpointState,
    all_checkpoints,
    check_integrity,
    checkpoints_before,
    damages,
    drop_partial,
    find_checkpoint,
    is_checkpoint,
    is_in,
    mark_score,
    read_state,
    rewind,
    stale_pointer,
)
from fgmoe_dist.config import Config, build_config, to_yaml
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import from_first
from fgmoe_dist.settings import flatten
from fgmoe_dist.tasks.agreement import differences
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.training.scoring import run_score, scored_tasks
from fgmoe_dist.training.trainer import Trainer


def resume_run(trainer: Trainer, folder: RunFolder, resume_from: str) -> int | None:
    """Brings `trainer` to where the checkpoint stood; its step, or None for a fresh start."""
    checkpoint = from_first(lambda: _check_and_choose(folder, resume_from, trainer.config))
    state = None
    if checkpoint is not None:
        _check_data(checkpoint, trainer)
        expected = {"tasks": list(trainer.config.tasks), "encoder_checksum": trainer.model.encoder.checksum}
        state = resume(trainer.engine, checkpoint, expected)
        trainer.step = state.step
        trainer.weighing.restore(state.weighting)
        for name, balance in trainer.balances.items():
            balance.restore(state.class_balance.get(name, []))
    from_first(lambda: _prepare_folder(trainer, folder, checkpoint, state))
    return None if state is None else state.step


def _check_data(checkpoint: Path, trainer: Trainer) -> None:
    """UserError where the shards mean something else by a task than those that the checkpoint was trained on."""
    called = ("the checkpoint", f"data.train={trainer.config.data.train}")
    if found := differences(trainer.config.tasks, read_state(checkpoint), trainer.samples.info, called):
        raise UserError(
            f"checkpoint {checkpoint}: {'; '.join(found)}; train on the data set that it was trained on, or start anew"
            " with another run.dir"
        )


def _check_and_choose(folder: RunFolder, resume_from: str, config: Config) -> Path | None:
    folder.check()
    return choose_checkpoint(folder, resume_from, config)


def _prepare_folder(
    trainer: Trainer, folder: RunFolder, checkpoint: Path | None, state: CheckpointState | None
) -> None:
    """Leaves in the run folder what belongs to the run that goes on from `checkpoint`, and nothing later."""
    checkpoints, kept_until = folder.checkpoints, None
    folder.claim()
    if checkpoint is not None:
        print(f"going on from {checkpoint}, step {state.step}", flush=True)
        _tell_changes(state, trainer.config)
        # Where another run's takes the place of its own, all that it tells is of an abandoned branch.
        if is_in(checkpoints, checkpoint) or find_checkpoint(checkpoints) is None:
            kept_until = state.step
        rewind(checkpoints, checkpoint)
    elif reached := max((entry["step"] for entry in folder.metrics()), default=0):
        print(f"{folder.path} has no checkpoint: starts over, in place of what it logged to step {reached}", flush=True)
    drop_partial(checkpoints)
    folder.create(to_yaml(trainer.config.pinned()), kept_until)
    if checkpoint is not None and is_in(checkpoints, checkpoint):
        _mark_what_was_scored(checkpoint, state, folder, trainer)
    folder.drop_old_stop(before=psutil.Process().create_time())


def _tell_changes(state: CheckpointState, config: Config) -> None:
    """Names settings that are not the checkpoint's: often meant, sometimes a slip."""
    now = flatten(config.pinned().model_dump(mode="json"))
    # A setting that came after the checkpoint had its default then.
    was = {**flatten(type(config)().model_dump(mode="json")), **flatten(state.config)}
    changes = [f"{key} {was.get(key)} -> {now.get(key)}" for key in {**now, **was} if was.get(key) != now.get(key)]
    if changes:
        print(f"  with other settings than it was saved with: {', '.join(changes)}", flush=True)


def choose_checkpoint(folder: RunFolder, resume_from: str, config: Config) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start. UserError if there is none such, or it does not fit.

    Only a folder without any checkpoint, whole or not, is started afresh.
    """
    own, there = find_checkpoint(folder.checkpoints), all_checkpoints(folder.checkpoints)
    if resume_from == "never" and own is not None:
        raise UserError(
            f"run.dir={folder.path}: holds checkpoints up to {own.name}, which --resume never would overwrite;"
            f" remove the folder or name another run.dir"
        )
    if resume_from in ("auto", "never"):
        chosen = None if own is None else _sound(own)
    else:
        chosen = _asked_for(resume_from, own, folder)
    if chosen is None and there:
        raise UserError(
            f"run.dir={folder.path}: has no checkpoint to go on from, yet holds {there[-1].name}, which is not whole or"
            f" of a branch that was left; name one with --resume, remove {folder.checkpoints}, or name another run.dir"
        )
    if chosen is not None and chosen == own and (stale := stale_pointer(folder.checkpoints)):
        print(f"{folder.checkpoints}/latest names {stale}, which is not there; {own.name} is the newest", flush=True)
    if chosen is not None:
        _check_groups(chosen, config)
    return chosen


def _sound(chosen: Path) -> Path:
    """It, or where its files are not what was written, the newest of the earlier ones whose files are."""
    reasons = []
    for checkpoint in checkpoints_before(chosen):
        if not (found := damages(checkpoint)):
            if reasons:
                print(f"{'; '.join(reasons)}; going on from the one before, {checkpoint.name}", flush=True)
            return checkpoint
        reasons += found
    raise UserError(
        f"{'; '.join(reasons)}; no sound checkpoint is left in {chosen.parent}: remove that folder to start over, or"
        " name another run.dir"
    )


def _asked_for(resume_from: str, own: Path | None, folder: RunFolder) -> Path:
    """The checkpoint that a path means, or the run's `own` latest if that has gone on from there."""
    asked = find_checkpoint(Path(resume_from))
    if asked is None:
        raise UserError(
            f"--resume {resume_from}: no checkpoint there; name a run folder or a checkpoints/step-... folder"
        )
    # So it is where the same command is given once more, after a crash or a requeue.
    if own is not None and not is_in(folder.checkpoints, asked):
        own = _sound(own)
        if read_state(own).step >= read_state(asked).step:
            print(
                f"--resume {resume_from}: {folder.path} has gone on to {own.name} already, which is taken instead;"
                f" to start from {asked.name} again, name another run.dir",
                flush=True,
            )
            return own
    if not is_checkpoint(Path(resume_from)):
        return _sound(asked)
    check_integrity(asked)
    return asked


def _check_groups(checkpoint: Path, config: Config) -> None:
    """UserError if `experts.groups=0` would now stand for another number than in the run so far."""
    groups = config.pinned().experts.groups
    if config.experts.groups or not groups or not config.routed.blocks:
        return
    origin, state = str(checkpoint / "state.json"), read_state(checkpoint)
    was = build_config(state.config, origin, defined_tasks=state.definitions).pinned().experts.groups
    if was not in (0, groups):
        raise UserError(
            f"checkpoint {checkpoint}: its experts are in {was} groups, this run's would be in {groups}, one a rank;"
            f" set experts.groups={was}"
        )


def _mark_what_was_scored(checkpoint: Path, state: CheckpointState, folder: RunFolder, trainer: Trainer) -> None:
    """For a run that died after an evaluation was written and before its checkpoint was told."""
    scores = folder.evaluations().get(state.step)
    if scores is not None and state.score is None:
        mark_score(checkpoint, run_score(trainer.tasks, scores), len(scored_tasks(trainer.tasks, scores)))
