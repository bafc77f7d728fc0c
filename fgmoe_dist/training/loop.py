"""The training loop: steps, logs, checkpoints, evaluations, and a truthful end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Optional

import psutil
import torch.distributed as dist

from fgmoe_dist.config import Config, flatten, flatten_values
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import ended_once, from_first
from fgmoe_dist.tracking.mlflow_run import MLflowRun, NoRun
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.tags import run_tags
from fgmoe_dist.training.background import CheckpointWriter
from fgmoe_dist.training.checkpoint import resume
from fgmoe_dist.training.checkpoint_folder import (
    CheckpointState,
    drop_partial,
    find_checkpoint,
    mark_score,
    rewind,
)
from fgmoe_dist.training.plan import parameter_counts
from fgmoe_dist.training.report import Reporter
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
        reporter.say(trainer.kernel)
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
    checkpoint = from_first(lambda: _choose_checkpoint(folder, resume_from))
    resumed = None
    if checkpoint is not None:
        expected = {"tasks": list(trainer.config.tasks), "encoder_checksum": trainer.model.encoder.checksum}
        state = resume(trainer.engine, checkpoint, expected)
        resumed = trainer.step = state.step
    if trainer.ranks.is_first:
        if checkpoint is not None:
            print(f"going on from {checkpoint}, step {resumed}", flush=True)
            _tell_changes(state, trainer.config)
            rewind(folder.checkpoints, checkpoint)
        drop_partial(folder.checkpoints)
        folder.create(trainer.config.to_yaml(), resumed)
        folder.drop_old_stop(before=psutil.Process().create_time())
    dist.barrier()
    return resumed


def _tell_changes(state: CheckpointState, config: Config) -> None:
    """Names settings that are not the checkpoint's: often meant, sometimes a slip."""
    was, now = flatten_values(state.config), flatten(config)
    changes = [f"{key} {was.get(key)} -> {value}" for key, value in now.items() if was.get(key) != value]
    if changes:
        print(f"  with other settings than it was saved with: {', '.join(changes)}", flush=True)


def _choose_checkpoint(folder: RunFolder, resume_from: str) -> Optional[Path]:
    found = find_checkpoint(folder.checkpoints if resume_from in ("auto", "never") else Path(resume_from))
    if resume_from == "auto":
        return found
    if resume_from == "never":
        if found is not None:
            raise UserError(
                f"run.dir={folder.path}: holds checkpoints up to {found.name}, which --resume never would overwrite;"
                f" remove the folder or name another run.dir"
            )
        return None
    if found is None:
        raise UserError(
            f"--resume {resume_from}: no checkpoint there; name a run folder or a checkpoints/step-... folder"
        )
    return found


def _start_tracking(trainer: Trainer, folder: RunFolder, resumed: Optional[int]) -> NoRun:
    config, ranks = trainer.config, trainer.ranks
    if not ranks.is_first:
        return NoRun()
    tags = run_tags(ranks.world, config.parallel.ep_size)
    parameters = {**flatten(config), "encoder.source": trainer.model.encoder.source}
    folder.update_about(status="RUNNING", tags=tags, model=parameter_counts(trainer.model, config))
    return MLflowRun.start(
        folder, config.tracking.uri, config.tracking.experiment, config.run.name, parameters, tags, resumed is not None
    )


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
        mark_score(find_checkpoint(folder.checkpoints), score)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _state_of(trainer: Trainer) -> CheckpointState:
    config, shards = trainer.config, trainer.train_shards
    return CheckpointState(
        step=trainer.step,
        config=config.model_dump(mode="json"),
        tasks=list(config.tasks),
        classes=shards.classes,
        boundary_max_dist=shards.boundary_max_dist,
        encoder_checksum=trainer.model.encoder.checksum,
        world=trainer.ranks.world,
        ep_size=config.parallel.ep_size,
        zero_stage=config.parallel.zero_stage,
    )
