"""Exact evaluation, sharded over the ranks: every image once, sums added up, the same scores on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fgmoe_dist.data.augment import EvalTransform, unpad_prediction
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import evaluation_samples
from fgmoe_dist.evaluation.scorer import Scorer
from fgmoe_dist.metrics import Scores
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.progress import track
from fgmoe_dist.ranks import Ranks

if TYPE_CHECKING:
    from fgmoe_dist.model import Model


class Observer(Protocol):
    """Sees each image of this rank once, in the order of the set, with what was predicted for it."""

    def update(self, sample: Mapping, predictions: Mapping[str, np.ndarray]) -> None: ...


def evaluate(
    model: Model,
    shards: ShardSet,
    transform: EvalTransform,
    ranks: Ranks,
    *,
    observers: Sequence[Observer] = (),
    baselines: Mapping[str, ConstantBaseline] | None = None,
    image_sums: ImageSums | None = None,
    workers: int = 0,
    max_bad_samples: int = 0,
    limit: int | None = None,
) -> Scores:
    """`{task: {metric: value}}` of `model` on all of `shards`; a collective call, the same result on every rank.

    Args:
        model: has `tasks`, and `predict` from images `[B, 3, H, W]` to arrays by task.
        shards, transform: the images, and how they become the network's input.
        ranks: among which the images are shared out.
        observers: see every prediction too: `Painter`, `PredictionWriter`.
        baselines: by task, see the labels in the same pass and are summed over the ranks likewise.
        image_sums: on rank 0 receives what each image of all ranks adds, to be believed by (`metrics.bootstrap`).
        workers: processes of each rank that load images; as many count what was predicted.
        max_bad_samples: unreadable images that a rank passes over.
        limit: stop after so many images of a rank, for a trial.
    """
    meters, baselines = {task.name: task.meter() for task in model.tasks}, baselines or {}
    samples = evaluation_samples(
        shards, list(meters), rank=ranks.rank, world=ranks.world, workers=workers, transform=transform,
        max_bad_samples=max_bad_samples,
    )  # fmt: skip
    count = min(-(-shards.samples // ranks.world), limit or shards.samples)
    with Scorer(meters, baselines, workers, image_sums) as scorer:
        for sample, predictions in _predictions(model, islice(samples, limit), transform.size_hw, ranks, count):
            for observer in (scorer, *observers):
                observer.update(sample, predictions)
    _add_over_ranks([*meters.values(), *baselines.values()], ranks.device)
    if image_sums is not None:
        _gather(image_sums, ranks)
    return {name: meter.compute() for name, meter in meters.items()}


def _predictions(
    model: Model, samples: Iterator, size_hw: tuple[int, int], ranks: Ranks, count: int
) -> Iterator[tuple[Mapping, dict[str, np.ndarray]]]:
    """This rank's samples with what `model` predicts for them, at their own size."""
    was_training = model.training
    model.eval()
    in_step = _in_step(samples, size_hw, ranks.device)
    for sample, image_3HW in track(in_step, "evaluating", count) if ranks.is_first else in_step:
        predictions = model.predict(image_3HW[None].to(ranks.device))
        if sample is not None:  # else this rank has no image left; others needed its experts
            native_hw = sample["image"].shape[:2]
            yield sample, {task.name: unpad_prediction(predictions[task.name][0], native_hw) for task in model.tasks}
    model.train(was_training)


def _in_step(
    samples: Iterator, size_hw: tuple[int, int], device: torch.device
) -> Iterator[tuple[Mapping | None, Tensor]]:
    """The rank's samples, then blank images until every rank is through: each forward pass is a collective."""
    blank_3HW = torch.zeros(3, *size_hw)
    while True:
        sample, image_3HW = next(samples, (None, blank_3HW))
        waiting = torch.tensor(int(sample is not None), device=device)
        dist.all_reduce(waiting)
        if waiting.item() == 0:
            return
        yield sample, image_3HW


def _add_over_ranks(meters: Sequence, device: torch.device) -> None:
    for meter in meters:
        mine = meter.state()
        everyone = torch.from_numpy(mine.copy()).to(device)
        dist.all_reduce(everyone)
        meter.merge(everyone.cpu().numpy() - mine)


def _gather(image_sums: ImageSums, ranks: Ranks) -> None:
    """The images of all ranks on the first one, in the order of the set."""
    parts: list[ImageSums | None] | None = [None] * ranks.world if ranks.is_first else None
    dist.gather_object(image_sums, parts)
    for part in parts[1:] if parts else ():
        image_sums.extend(part)
