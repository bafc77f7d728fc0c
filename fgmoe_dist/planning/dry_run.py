"""What a configuration amounts to: parameters, placement, traffic, steps; and the dry run that proves it works."""

from __future__ import annotations

import sys

from deepspeed.moe.utils import is_moe_param
from rich.console import Console
from rich.table import Table

from fgmoe_dist.config import Config
from fgmoe_dist.decoders.fgmoe import FGMoE
from fgmoe_dist.evaluation.evaluate import evaluate
from fgmoe_dist.planning.traffic import exchange_bytes
from fgmoe_dist.tracking.mlflow_run import resolve_uri
from fgmoe_dist.training.trainer import Trainer, mean_over_ranks


def parameter_counts(model: FGMoE, config: Config) -> dict[str, int]:
    """Parameters of the whole model, over all ranks: `total`, `trained`, `routed`, and `active` for one token.

    A token of one task passes what all tasks share, its own task's parts (`own_parameters` of the modules), and k of
    the N' routed experts that its task may choose. Parts of different size (heads) count with their mean over tasks.
    """
    tasks, experts = len(config.tasks), config.experts
    replicated = sum(p.numel() for p in model.parameters() if not is_moe_param(p))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad and not is_moe_param(p))
    routed = config.parallel.ep_size * sum(p.numel() for p in model.parameters() if is_moe_param(p))
    modules = (module for module in model.modules() if hasattr(module, "own_parameters"))
    own = sum(parameter.numel() for module in modules for parameter in module.own_parameters())
    banks = experts.banks(tasks)
    return {
        "total": replicated + routed,
        "trained": trained + routed,
        "routed": routed,
        "active": replicated - own * (tasks - 1) // tasks + routed // (banks * experts.routed) * experts.top_k,
    }


def print_plan(trainer: Trainer) -> None:
    config, ranks, model = trainer.config, trainer.ranks, trainer.model
    counts = parameter_counts(model, config)
    experts, parallel = config.experts, config.parallel
    whose = "for all tasks of a" if experts.bank == "shared" else "a task and"
    accumulation = trainer.engine.gradient_accumulation_steps()
    epochs = config.train.steps * config.train.batch_size / trainer.train_shards.samples
    rows = [
        ("encoder", f"{config.encoder.name}, frozen, weights: {model.encoder.source}"),
        ("parameters", f"{counts['total']:,} total, {counts['trained']:,} trained,"
                       f" {counts['active']:,} active per token"),
        ("ranks", f"{ranks.world} on {ranks.device.type}; ep_size {parallel.ep_size},"
                  f" {ranks.world // parallel.ep_size} copies of the experts; ZeRO {parallel.zero_stage}"),
        ("experts", f"{experts.routed} routed {whose} block ({experts.routed // parallel.ep_size} on each rank),"
                    f" {experts.top_k} a token, {experts.shared} shared, {experts.global_experts} global;"
                    f" backend {experts.backend}"),
        ("kernel", trainer.kernel),
        ("all-to-all", _describe_exchange(config, accumulation)),
        ("data", f"{trainer.train_shards.samples} training images, {trainer.val_shards.samples} validation images"),
        ("steps", f"{config.train.steps} of {config.train.batch_size} images: {ranks.world} ranks"
                  f" x {config.train.micro_batch_size} x {accumulation}; {epochs:.1f} epochs"),
        ("run folder", str(config.run.dir)),
    ]  # fmt: skip
    table = Table(title=f"plan of {config.run.name}", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)


def _describe_exchange(config: Config, accumulation: int) -> str:
    if config.experts.backend != "fused":
        return f"the {config.experts.backend} backend's own: two padded ones a task, block and micro-batch"
    traffic = exchange_bytes(config)
    return (
        f"{_mib(traffic['out'])} out and {_mib(traffic['back'])} back a rank, block and micro-batch"
        f" (x {config.decoder.blocks} blocks x {accumulation} micro-batches, and again in backward)"
    )


def dry_run(trainer: Trainer) -> None:
    """Prints the plan, then trains one step and evaluates a few images, so that mistakes show now. Writes nothing."""
    if trainer.ranks.is_first:
        if trainer.config.tracking.uri != "none":
            resolve_uri(trainer.config.tracking.uri, trainer.config.run.dir)
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
