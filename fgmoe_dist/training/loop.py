"""The training loop: steps, logs, checkpoints, evaluations, and a truthful end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Optional

import psutil
import torch.distributed as dist

from fgmoe_dist.checkpoints.checkpoint import resume
from fgmoe_dist.checkpoints.folder import (
    CheckpointState,
    drop_partial,
    find_checkpoint,
    is_in,
    mark_score,
    read_state,
    rewind,
    whole_folder,
)
from fgmoe_dist.checkpoints.writer import CheckpointWriter
from fgmoe_dist.config import Config, build_config, flatten, flatten_values, to_yaml
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import ended_once, from_first
from fgmoe_dist.tracking.mlflow_run import MLflowRun, NoRun
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.tags import run_tags
from fgmoe_dist.training.report import Reporter, run_score
from fgmoe_dist.training.trainer import Trainer


def train(trainer: Trainer, resume_from: str = "auto") -> None:
    """Trains to `train.steps`, or to the first step boundary after a file `stop` appears in the run folder."""
    config, steps = trainer.config.train, trainer.config.train.steps
    folder = RunFolder(trainer.config.run.dir)
    resumed = _resume(trainer, folder, resume_from)
    with (
        _start_tracking(trainer, folder, resumed) as tracker,
        CheckpointWriter(
            folder.checkpoints, config.keep_checkpoints, say=functools.partial(print, flush=True)
        ) as writer,
        ended_once(),
    ):
        reporter = Reporter(trainer, folder, tracker)
        for line in trainer.notes:
            reporter.say(line)
        if resumed is not None and from_first(lambda: find_checkpoint(folder.checkpoints) is None):
            writer.save(trainer.engine, _state_of(trainer))  # another run's: from now on this folder stands by itself
        while trainer.step < steps:
            reporter.observe(trainer.train_step())
            at_end, stopping = trainer.step == steps, _asked_to_stop(folder, writer)
            evaluating = _due(trainer.step, config.evaluate_every) and not at_end and not stopping
            if trainer.step % config.log_every == 0 or trainer.step == 1 or at_end:
                reporter.log()
            # Saved first: whatever may go wrong in an evaluation, the training is not lost.
            if at_end or stopping or evaluating or _due(trainer.step, config.checkpoint_every):
                writer.save(trainer.engine, _state_of(trainer))
            if evaluating:
                _evaluate(reporter, folder, writer)
            if stopping and not at_end:
                writer.wait()
                reporter.say(f"stopped at step {trainer.step} as asked; the same command goes on from here")
                tracker.finish("KILLED")
                return
        if from_first(lambda: steps not in folder.evaluations()):
            _evaluate(reporter, folder, writer, with_constants=True)
        elif resumed == steps:
            reporter.say(f"{folder.path} is complete at step {steps}; raise train.steps, or name another run.dir")
        writer.wait()
        reporter.finish()


def _resume(trainer: Trainer, folder: RunFolder, resume_from: str) -> Optional[int]:
    """Brings `trainer` to where the checkpoint stood; its step, or None for a fresh start."""
    checkpoint = from_first(lambda: _choose_checkpoint(folder, resume_from, trainer.config))
    state = None
    if checkpoint is not None:
        expected = {"tasks": list(trainer.config.tasks), "encoder_checksum": trainer.model.encoder.checksum}
        state = resume(trainer.engine, checkpoint, expected)
        trainer.step = state.step
    from_first(lambda: _prepare_folder(trainer, folder, checkpoint, state))
    return None if state is None else state.step


def _prepare_folder(
    trainer: Trainer, folder: RunFolder, checkpoint: Optional[Path], state: Optional[CheckpointState]
) -> None:
    """Leaves in the run folder what belongs to the run that goes on from `checkpoint`, and nothing later."""
    checkpoints, kept_until = folder.checkpoints, None
    if checkpoint is not None:
        print(f"going on from {checkpoint}, step {state.step}", flush=True)
        _tell_changes(state, trainer.config)
        # Where another run's takes the place of its own, all that it tells is of an abandoned branch.
        if is_in(checkpoints, checkpoint) or find_checkpoint(checkpoints) is None:
            kept_until = state.step
        rewind(checkpoints, checkpoint)
    drop_partial(checkpoints)
    folder.create(to_yaml(trainer.config.pinned()), kept_until)
    if checkpoint is not None and is_in(checkpoints, checkpoint):
        _mark_what_was_scored(checkpoint, state, folder, trainer)
    folder.drop_old_stop(before=psutil.Process().create_time())


def _tell_changes(state: CheckpointState, config: Config) -> None:
    """Names settings that are not the checkpoint's: often meant, sometimes a slip."""
    was, now = flatten_values(state.config), flatten(config.pinned())
    changes = [f"{key} {was.get(key)} -> {value}" for key, value in now.items() if was.get(key) != value]
    if changes:
        print(f"  with other settings than it was saved with: {', '.join(changes)}", flush=True)


def _choose_checkpoint(folder: RunFolder, resume_from: str, config: Config) -> Optional[Path]:
    """The checkpoint to go on from, or None for a fresh start. UserError if there is none such, or it does not fit."""
    own = find_checkpoint(folder.checkpoints)
    chosen = own if resume_from in ("auto", "never") else _asked_for(resume_from, own, folder)
    if resume_from == "never" and own is not None:
        raise UserError(
            f"run.dir={folder.path}: holds checkpoints up to {own.name}, which --resume never would overwrite;"
            f" remove the folder or name another run.dir"
        )
    if chosen is not None:
        _check_groups(chosen, config)
    return chosen


def _asked_for(resume_from: str, own: Optional[Path], folder: RunFolder) -> Path:
    """The checkpoint that a path means, or the run's `own` latest if that has gone on from there."""
    asked = find_checkpoint(Path(resume_from))
    if asked is None:
        raise UserError(
            f"--resume {resume_from}: no checkpoint there; name a run folder or a checkpoints/step-... folder"
        )
    # So it is where the same command is given once more, after a crash or a requeue.
    if own is not None and not is_in(folder.checkpoints, asked) and read_state(own).step >= read_state(asked).step:
        print(
            f"--resume {resume_from}: {folder.path} has gone on to {own.name} already, which is taken instead;"
            f" to start from {asked.name} again, name another run.dir",
            flush=True,
        )
        return own
    return asked


def _check_groups(checkpoint: Path, config: Config) -> None:
    """UserError if `experts.groups=0` would now stand for another number than in the run so far."""
    groups = config.pinned().experts.groups
    if config.experts.groups or not groups:
        return
    origin = str(checkpoint / "state.json")
    was = build_config(read_state(checkpoint).config, origin).pinned().experts.groups
    if was not in (0, groups):
        raise UserError(
            f"checkpoint {checkpoint}: its experts are in {was} groups, this run's would be in {groups}, one a rank;"
            f" set experts.groups={was}"
        )


def _mark_what_was_scored(checkpoint: Path, state: CheckpointState, folder: RunFolder, trainer: Trainer) -> None:
    """For a run that died after an evaluation was written and before its checkpoint was told."""
    scores = folder.evaluations().get(state.step)
    if scores is None or state.score is not None:
        return
    if all(scores[task.name][task.headline] is not None for task in trainer.tasks):  # null stands for NaN
        mark_score(checkpoint, run_score(trainer.tasks, scores))


def _start_tracking(trainer: Trainer, folder: RunFolder, resumed: Optional[int]) -> NoRun:
    config, ranks = trainer.config, trainer.ranks
    if not ranks.is_first:
        return NoRun()
    tags = run_tags(ranks.world, config.parallel.ep_size)
    parameters = {**flatten(config.pinned()), "encoder.source": trainer.model.encoder.source}
    folder.update_about(
        status="RUNNING",
        tags=tags,
        model=_parameters(trainer),
    )
    return MLflowRun.start(
        folder, config.tracking.uri, config.tracking.experiment, config.run.name, parameters, tags, resumed is not None
    )


def _parameters(trainer: Trainer) -> dict[str, int]:
    return parameter_counts(trainer.model.decoder, trainer.model.encoder, trainer.config.parallel.ep_size)


def _asked_to_stop(folder: RunFolder, writer: CheckpointWriter) -> bool:
    """Whether rank 0 sees the file `stop`; every rank gets the same answer at the same step.

    Raises, likewise everywhere at once, if the latest checkpoint could not be written.
    """

    def look() -> bool:
        writer.check()
        return folder.stop_file.exists()

    asked = from_first(look)
    if asked and dist.get_rank() == 0:
        folder.stop_file.unlink(missing_ok=True)
    return asked


def _evaluate(reporter: Reporter, folder: RunFolder, writer: CheckpointWriter, with_constants: bool = False) -> None:
    score = reporter.evaluate(with_constants)
    writer.wait()
    if dist.get_rank() == 0:
        mark_score(whole_folder(folder.checkpoints, reporter.trainer.step), score)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _state_of(trainer: Trainer) -> CheckpointState:
    config, shards = trainer.config, trainer.train_shards
    return CheckpointState(
        step=trainer.step,
        config=config.pinned().model_dump(mode="json"),
        tasks=list(config.tasks),
        classes=shards.classes,
        boundary_max_dist=shards.boundary_max_dist,
        encoder_checksum=trainer.model.encoder.checksum,
        world=trainer.ranks.world,
        ep_size=config.parallel.ep_size,
        zero_stage=config.parallel.zero_stage,
    )
