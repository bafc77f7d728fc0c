"""What a pruned model still is and can: experts, parameters, work, and with a validation set its scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from fgmoe_dist.config import Config
from fgmoe_dist.data.augment import EvalTransform
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.sizes import check_fits
from fgmoe_dist.data.stream import evaluation_samples
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.evaluation.evaluate import evaluate
from fgmoe_dist.model import Model
from fgmoe_dist.planning.flops import flops_of
from fgmoe_dist.progress import track
from fgmoe_dist.pruning.choose import count_kept
from fgmoe_dist.ranks import Ranks


def calibration_images(model: Model, config: Config, where: str, limit: int | None) -> Iterator[Tensor]:
    """Normalised images `[3, H, W]` of a set, the first `limit` of them. UserError where it does not fit."""
    shards = ShardSet.open(where)
    check_fits(shards, config.data.image_size)
    transform = EvalTransform(config.data.image_size, model.encoder.mean, model.encoder.std)
    samples = islice(evaluation_samples(shards, [], transform=transform), limit)
    return (image_3HW for _, image_3HW in track(samples, "counting", min(shards.samples, limit or shards.samples)))


def row(keep: str, model: Model, config: Config, validation: str | None, ranks: Ranks) -> dict[str, Any]:
    """Of one model."""
    counts, flops = parameter_counts(model.decoder, model.encoder, ep_size=1), flops_of(config)
    found = {
        "keep": keep,
        "experts": count_kept(config.experts, len(config.tasks), config.routed.blocks),
        "parameters": {name: counts[name] for name in ("total", "trained", "routed", "active")},
        "gflops": round(flops.encoder + flops.decoder, 3),
    }
    if validation:
        shards = ShardSet.open(validation)
        check_fits(shards, config.data.image_size)
        transform = EvalTransform(config.data.image_size, model.encoder.mean, model.encoder.std)
        scores = evaluate(model, shards, transform, ranks)
        found["scores"] = {task.name: {task.headline: scores[task.name][task.headline]} for task in model.tasks}
    return found


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a model; the first is the one that was pruned."""
    scored = {f"{task} {name}": (task, name) for task, found in rows[0].get("scores", {}).items() for name in found}
    heads = ["keep", "experts", "routed parameters", "trained", "active", "GFLOPs", *scored]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for each in rows:
        sizes = [f"{each['parameters'][name]:,}" for name in ("routed", "trained", "active")]
        scores = [each.get("scores", {}).get(task, {}).get(name) for task, name in scored.values()]
        told = ["-" if score is None else f"{score:.4g}" for score in scores]
        cells = [each["keep"], str(each["experts"]), *sizes, f"{each['gflops']:.2f}", *told]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
