"""What a configuration amounts to: parameters, placement, traffic, steps; and the dry run that proves it works."""

from __future__ import annotations

import math
import sys

from deepspeed.moe.utils import is_moe_param
from rich.console import Console
from rich.table import Table

from fgmoe_dist.config import Config
from fgmoe_dist.evaluation.evaluate import evaluate
from fgmoe_dist.models.fgmoe import FGMoE
from fgmoe_dist.training.trainer import Trainer, mean_over_ranks


def parameter_counts(model: FGMoE, config: Config) -> dict[str, int]:
    """Parameters of the whole model, over all ranks: `total`, `trained`, `routed`, and `active` for one token.

    A token of one task passes the k routed experts chosen for it among that task's N', and everything else.
    """
    replicated = sum(p.numel() for p in model.parameters() if not is_moe_param(p))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad and not is_moe_param(p))
    routed = config.parallel.ep_size * sum(p.numel() for p in model.parameters() if is_moe_param(p))
    idle = routed - routed // (len(config.tasks) * config.experts.routed) * config.experts.top_k
    return {
        "total": replicated + routed,
        "trained": trained + routed,
        "routed": routed,
        "active": replicated + routed - idle,
    }


def exchange_bytes(config: Config) -> dict[str, float]:
    """Bytes one rank sends to other ranks in one all-to-all of a block and micro-batch, out and back, at even routing.

    A token goes once to each rank that holds some of its k experts: with its channels, its gates and their indices on
    the way out, with the sum alone on the way back.
    """
    experts, ep_size, train = config.experts, config.parallel.ep_size, config.train
    height, width = (side // config.decoder.stride for side in config.data.image_size)
    tokens = len(config.tasks) * train.micro_batch_size * height * width
    # Chance that none of k distinct experts out of N' lives on a given rank.
    missed = math.comb(experts.routed - experts.routed // ep_size, experts.top_k) / math.comb(
        experts.routed, experts.top_k
    )
    rows = tokens * (1 - missed) * (ep_size - 1)
    channel_bytes = config.decoder.channels * (2 if train.precision == "bf16" else 4)
    return {"out": rows * (channel_bytes + 8 * experts.top_k), "back": rows * channel_bytes}


def print_plan(trainer: Trainer) -> None:
    config, ranks, model = trainer.config, trainer.ranks, trainer.model
    counts, traffic = parameter_counts(model, config), exchange_bytes(config)
    experts, parallel = config.experts, config.parallel
    accumulation = trainer.engine.gradient_accumulation_steps()
    epochs = config.train.steps * config.train.batch_size / trainer.train_shards.samples
    rows = [
        ("encoder", f"{config.encoder.name}, frozen, weights: {model.encoder.source}"),
        ("parameters", f"{counts['total']:,} total, {counts['trained']:,} trained,"
                       f" {counts['active']:,} active per token"),
        ("ranks", f"{ranks.world} on {ranks.device.type}; ep_size {parallel.ep_size},"
                  f" {ranks.world // parallel.ep_size} copies of the experts; ZeRO {parallel.zero_stage}"),
        ("experts", f"{experts.routed} routed a task and block ({experts.routed // parallel.ep_size} on each rank),"
                    f" {experts.top_k} a token, {experts.shared} shared, {experts.global_experts} global;"
                    f" backend {experts.backend}"),
        ("all-to-all", f"{_mib(traffic['out'])} out and {_mib(traffic['back'])} back a rank, block and micro-batch"
                       f" (x {config.decoder.blocks} blocks x {accumulation} micro-batches, and again in backward)"),
        ("data", f"{trainer.train_shards.samples} training images, {trainer.val_shards.samples} validation images"),
        ("steps", f"{config.train.steps} of {config.train.batch_size} images: {ranks.world} ranks"
                  f" x {config.train.micro_batch_size} x {accumulation}; {epochs:.1f} epochs"),
        ("run folder", str(config.run.dir)),
    ]  # fmt: skip
    table = Table(title=f"plan of {config.run.name}", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)


def dry_run(trainer: Trainer) -> None:
    """Prints the plan, then trains one step and evaluates a few images, so that mistakes show now. Writes nothing."""
    if trainer.ranks.is_first:
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
