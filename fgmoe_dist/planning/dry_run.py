"""What a configuration amounts to: parameters, placement, traffic, steps; and the dry run that proves it works."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fgmoe_dist import plugins
from fgmoe_dist.config import Config
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.evaluation.evaluate import evaluate
from fgmoe_dist.outputs import RESULTS, claim
from fgmoe_dist.planning.data_look import count_labels, draw_batch
from fgmoe_dist.planning.flops import figures_of
from fgmoe_dist.planning.traffic import exchange_bytes
from fgmoe_dist.ranks import from_first
from fgmoe_dist.training.report import memory_gib
from fgmoe_dist.training.trainer import Trainer, mean_over_ranks


def print_plan(trainer: Trainer, labels: str) -> None:
    config, ranks, model = trainer.config, trainer.ranks, trainer.model
    counts = parameter_counts(model.decoder, model.encoder, config.parallel.ep_size)
    parallel = config.parallel
    accumulation = trainer.engine.accumulation
    epochs = config.train.steps * config.train.batch_size / trainer.train_shards.samples
    rows = [
        ("encoder", f"{config.encoder.name}, frozen, weights: {model.encoder.source}"),
        ("parameters", f"{counts['total']:,} total, {counts['trained']:,} trained,"
                       f" {counts['active']:,} active per token"),
        *_work(config),
        ("ranks", f"{ranks.world} on {ranks.device.type}; ep_size {parallel.ep_size},"
                  f" {ranks.world // parallel.ep_size} copies of the experts; ZeRO {parallel.zero_stage}"),
        *model.decoder.describe(),
        *_exchange(config, accumulation),
        ("data", f"{trainer.train_shards.samples} training images, {trainer.val_shards.samples} validation images"),
        ("labels", labels),
        ("steps", f"{config.train.steps} of {config.train.batch_size} images: {ranks.world} ranks"
                  f" x {config.train.micro_batch_size} x {accumulation} (accumulation); {epochs:.1f} epochs"),
        ("precision", f"{config.train.precision}; encoder {config.encoder_precision}"),
        ("learning rate", _learning_rate(config)),
        ("loss weights", _loss_weights(config)),
        ("engine", _engine(trainer)),
        *(("plug-in", str(plugin)) for plugin in plugins.loaded()),
        ("run folder", str(config.run.dir)),
    ]  # fmt: skip
    table = Table(title=f"plan of {config.run.name}", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)


def _work(config: Config) -> list[tuple[str, str]]:
    """A row on what one image costs; none where nobody can tell."""
    found = figures_of(config)
    if not found:
        return []
    encoder, decoder = found["encoder_gflops"], found["decoder_gflops"]
    return [("GFLOPs", f"{encoder + decoder:,.1f} an image: encoder {encoder:,.1f}, decoder {decoder:,.1f}")]


def _learning_rate(config: Config) -> str:
    train = config.train
    warmup = f", after a warm-up of {train.warmup_steps} steps" if train.warmup_steps else ""
    course = f"x (1 - step/steps)^{train.poly_power:g}" if train.poly_power else "constant"
    return f"{train.lr:g} {course}{warmup}; {train.optimizer}, weight decay {train.weight_decay:g}"


def _loss_weights(config: Config) -> str:
    weights = config.train.loss_weights
    told = ", ".join(f"{task} {weights.get(task, 1):g}" for task in config.tasks)
    idle = [task for task in weights if task not in config.tasks]
    note = f"; without effect, as not among tasks: {', '.join(idle)}" if idle else ""
    return f"{told}; weighed by {config.train.weighting.kind}{note}"


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


def dry_run(trainer: Trainer, pictures: Path | None = None) -> None:
    """Prints the plan, then trains two steps and evaluates an image, so that mistakes show now.

    Writes nothing but a picture of an augmented batch, into the folder `pictures` if that is given.
    """
    ranks = trainer.ranks
    labels = from_first(lambda: str(count_labels(trainer.train_shards, trainer.tasks)))
    if ranks.is_first:
        print_plan(trainer, labels)
    if pictures is not None:
        from_first(lambda: print(f"an augmented batch: {_draw(trainer, pictures)}", flush=True))
    report = trainer.train_step()
    losses = mean_over_ranks(report.losses)
    again = trainer.train_step()  # the first also reads and allocates what every other finds there
    started = time.perf_counter()
    evaluate(trainer.model, trainer.val_shards, trainer.eval_transform, ranks, limit=1)
    evaluated = time.perf_counter() - started
    if ranks.is_first:
        tasks = ", ".join(f"{task.name} {losses[task.name]:.4f}" for task in trainer.tasks)
        print(
            f"one step: loss {losses['total']:.4f} ({tasks}), gradient norm {report.grad_norm:.4f},"
            f" {report.seconds:.2f} s"
        )
        print(_estimate(trainer, again.seconds, evaluated))
        written = f"nothing but {pictures} was written" if pictures else "nothing was written"
        print(f"one image a rank evaluated; the configuration works, {written}")


def _draw(trainer: Trainer, folder: Path) -> str:
    """Where the first batch of this rank is drawn; as cached features it cannot be."""
    if trainer.train_shards.cache:
        return "data.train holds features in the place of images, which nobody can see"
    claim(folder, "--pictures", RESULTS)
    batch = next(trainer.samples.batches(trainer.config, trainer.model.encoder, trainer.ranks, trainer.step))
    return str(draw_batch(batch, trainer.model.encoder, trainer.tasks, folder / "batch.png"))


def _estimate(trainer: Trainer, step_seconds: float, image_seconds: float) -> str:
    """Hours and memory of the whole run, from what the trial took."""
    train, ranks = trainer.config.train, trainer.ranks
    evaluations = 1 + (train.steps - 1) // train.evaluate_every if train.evaluate_every else 1
    images = -(-trainer.val_shards.samples // ranks.world)
    training, evaluating = train.steps * step_seconds, evaluations * images * image_seconds
    return (
        f"at this pace: {_hours(training)} for {train.steps} steps of {step_seconds:.2f} s, {_hours(evaluating)} for"
        f" {evaluations} evaluation(s) of {trainer.val_shards.samples} images;"
        f" memory of a rank: {memory_gib(ranks.device):.2f} GiB, as the trial left it under {trainer.engine_name}"
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"
