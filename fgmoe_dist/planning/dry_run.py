"""What a configuration amounts to: parameters, placement, traffic, steps; and the dry run that proves it works."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from fgmoe_dist import plugins
from fgmoe_dist.config import Config
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.evaluation.evaluate import evaluate
from fgmoe_dist.planning.traffic import exchange_bytes
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import create_sinks
from fgmoe_dist.training.trainer import Trainer, mean_over_ranks


def print_plan(trainer: Trainer) -> None:
    config, ranks, model = trainer.config, trainer.ranks, trainer.model
    counts = parameter_counts(model.decoder, model.encoder, config.parallel.ep_size)
    parallel = config.parallel
    accumulation = trainer.engine.accumulation
    epochs = config.train.steps * config.train.batch_size / trainer.train_shards.samples
    rows = [
        ("encoder", f"{config.encoder.name}, frozen, weights: {model.encoder.source}"),
        ("parameters", f"{counts['total']:,} total, {counts['trained']:,} trained,"
                       f" {counts['active']:,} active per token"),
        ("ranks", f"{ranks.world} on {ranks.device.type}; ep_size {parallel.ep_size},"
                  f" {ranks.world // parallel.ep_size} copies of the experts; ZeRO {parallel.zero_stage}"),
        *model.decoder.describe(),
        *_exchange(config, accumulation),
        ("data", f"{trainer.train_shards.samples} training images, {trainer.val_shards.samples} validation images"),
        ("steps", f"{config.train.steps} of {config.train.batch_size} images: {ranks.world} ranks"
                  f" x {config.train.micro_batch_size} x {accumulation}; {epochs:.1f} epochs"),
        ("engine", _engine(trainer)),
        *(("plug-in", str(plugin)) for plugin in plugins.loaded()),
        ("run folder", str(config.run.dir)),
    ]  # fmt: skip
    table = Table(title=f"plan of {config.run.name}", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)


def _engine(trainer: Trainer) -> str:
    wanted = trainer.config.parallel.engine
    if trainer.engine_name == wanted:
        return wanted
    return f"{trainer.engine_name} autograd, for this trial in one process; a run itself trains under {wanted}"


def _exchange(config: Config, accumulation: int) -> list[tuple[str, str]]:
    """A row on what the routed experts of a decoder send; none where it has none."""
    routed = config.routed
    if not routed.blocks:
        return []
    if routed.experts.backend != "fused":
        told = f"the {routed.experts.backend} backend's own: two padded ones a task, block and micro-batch"
        return [("all-to-all", told)]
    traffic = exchange_bytes(config)
    told = (
        f"{_mib(traffic['out'])} out and {_mib(traffic['back'])} back a rank, block and micro-batch"
        f" (x {routed.blocks} blocks x {accumulation} micro-batches, and again in backward)"
    )
    return [("all-to-all", told)]


def trial_engine(config: Config, world: int) -> str:
    """The engine of a dry run: one process in fp32 needs no DeepSpeed, which takes seconds to start."""
    engine = config.parallel.engine
    return "plain" if engine == "deepspeed" and world == 1 and config.train.precision == "fp32" else engine


def dry_run(trainer: Trainer) -> None:
    """Prints the plan, then trains one step and evaluates a few images, so that mistakes show now. Writes nothing."""
    if trainer.ranks.is_first:
        create_sinks(RunFolder(trainer.config.run.dir), trainer.config.model_dump(mode="json"))
        print_plan(trainer)
    report = trainer.train_step()
    losses = mean_over_ranks(report.losses)
    evaluate(trainer.model, trainer.val_shards, trainer.eval_transform, trainer.ranks, limit=1)
    if trainer.ranks.is_first:
        tasks = ", ".join(f"{task.name} {losses[task.name]:.4f}" for task in trainer.tasks)
        print(
            f"one step: loss {losses['total']:.4f} ({tasks}), gradient norm {report.grad_norm:.4f},"
            f" {report.seconds:.2f} s"
        )
        print("one image a rank evaluated; the configuration works, nothing was written")


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"
