"""The training loop: steps, logs, checkpoints, evaluations, and a truthful end."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from fgmoe_dist import plugins
from fgmoe_dist.checkpoints.folder import CheckpointState, find_checkpoint, mark_score, whole_folder
from fgmoe_dist.checkpoints.space import check_room_for_run
from fgmoe_dist.checkpoints.writer import CheckpointWriter
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.ranks import ended_once, from_first
from fgmoe_dist.tasks import DataSetFacts, headlines
from fgmoe_dist.tracking.recorder import Recorder
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.tags import run_tags
from fgmoe_dist.training.report import Reporter
from fgmoe_dist.training.resume import resume_run
from fgmoe_dist.training.scoring import run_score, score_validation, scored_tasks
from fgmoe_dist.training.trainer import Trainer

say = functools.partial(print, flush=True)


def train(trainer: Trainer, resume_from: str = "auto", facts: Mapping[str, Any] | None = None) -> None:
    """Trains to `train.steps`, or to the first step boundary after a file `stop` appears in the run folder.

    `facts` become further entries of `about.json`.
    """
    config, steps = trainer.config.train, trainer.config.train.steps
    folder = RunFolder(trainer.config.run.dir)
    resumed = resume_run(trainer, folder, resume_from)
    if resumed == steps and from_first(lambda: _is_finished(folder, steps)):
        # Not even begun: its duration and its end, in MLflow too, stay what they were.
        if trainer.ranks.is_first:
            say(f"{folder.path} is complete at step {steps}; raise train.steps, or name another run.dir")
        return
    counts = parameter_counts(trainer.model.decoder, trainer.model.encoder, trainer.config.parallel.ep_size)
    from_first(lambda: check_room_for_run(folder.checkpoints, counts["trained"], config.keep_checkpoints))
    with (
        _start_recording(trainer, folder, {"model": counts, **(facts or {})}) as recorder,
        CheckpointWriter(folder.checkpoints, config.keep_checkpoints, say) as writer,
        ended_once(),
    ):
        reporter = Reporter(trainer, folder, recorder)
        for line in filter(None, [trainer.ranks.threads, *plugins.notes(), *trainer.notes]):
            reporter.say(line)
        if resumed is not None and from_first(lambda: find_checkpoint(folder.checkpoints) is None):
            writer.save(trainer.engine, _state_of(trainer))  # another run's: from now on this folder stands by itself
        if trainer.step < steps:
            reporter.say(
                f"step {trainer.step + 1} begins; the first one takes longer, as loaders start and memory is made"
            )
        while trainer.step < steps:
            reporter.observe(trainer.train_step())
            at_end, stopping = trainer.step == steps, _asked_to_stop(folder, writer)
            evaluating = _due(trainer.step, config.evaluate_every) and not at_end and not stopping
            if trainer.step % config.log_every == 0 or trainer.step == 1 or at_end:
                reporter.log()
            else:
                reporter.keep_alive()
            # Saved first: whatever may go wrong in an evaluation, the training is not lost.
            if at_end or stopping or evaluating or _due(trainer.step, config.checkpoint_every):
                writer.save(trainer.engine, _state_of(trainer))
            if evaluating:
                _evaluate(reporter, writer)
            if stopping and not at_end:
                writer.wait()
                reporter.say(f"stopped at step {trainer.step} as asked; the same command goes on from here")
                recorder.finish("KILLED")
                return
        if trainer.step > steps:
            reporter.say(
                f"{folder.path} stands at step {trainer.step} already, beyond train.steps={steps}: nothing is trained;"
                f" raise train.steps, resume from an earlier checkpoint, or name another run.dir"
            )
        if from_first(lambda: trainer.step not in folder.evaluation_files()):
            _evaluate(reporter, writer, at_end=True)
        writer.wait()
        reporter.say_where()


def _is_finished(folder: RunFolder, steps: int) -> bool:
    return folder.about().get("status") == "FINISHED" and steps in folder.evaluation_files()


def _start_recording(trainer: Trainer, folder: RunFolder, facts: Mapping[str, Any]) -> Recorder:
    config, ranks = trainer.config, trainer.ranks
    if not ranks.is_first:
        return Recorder()
    validation = trainer.val_shards.identity
    return Recorder.start(
        folder,
        run_tags(ranks.world, config.parallel.ep_size) | {"validation_set": validation["digest"]},
        encoder={"source": trainer.model.encoder.source},
        headlines=headlines(trainer.tasks),
        data={
            "training": {**trainer.train_shards.identity, "where": str(trainer.config.data.train)},
            "validation": {**validation, "where": str(trainer.config.data.val)},
        },
        changed=trainer.config.changed(),
        **facts,
    )


def _evaluate(reporter: Reporter, writer: CheckpointWriter, at_end: bool = False) -> None:
    """Scores the validation set, tells of it, and notes in the step's checkpoint how good it is; a collective.

    The last time beside constant predictions, and with what each image adds, by which runs are compared.
    """
    trainer, folder = reporter.trainer, reporter.folder
    image_sums = ImageSums() if at_end else None
    scores, constant_scores = score_validation(trainer, folder.pictures(trainer.step), at_end, image_sums)
    if image_sums is not None and trainer.ranks.is_first:
        image_sums.save(folder.image_sums_file(trainer.step), asdict(DataSetFacts.of(trainer.val_shards)))
    reporter.evaluated(scores, constant_scores)
    writer.wait()
    if trainer.ranks.is_first:
        checkpoint, counted = whole_folder(folder.checkpoints, trainer.step), scored_tasks(trainer.tasks, scores)
        mark_score(checkpoint, run_score(trainer.tasks, scores), len(counted))


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
        definitions=shards.definitions,
        encoder_checksum=trainer.model.encoder.checksum,
        world=trainer.ranks.world,
        ep_size=config.parallel.ep_size,
        zero_stage=config.parallel.zero_stage,
        weighting=trainer.weighing.state(),
        class_balance={name: balance.state() for name, balance in trainer.balances.items()},
    )
