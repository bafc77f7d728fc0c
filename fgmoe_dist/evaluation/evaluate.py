"""Exact evaluation, sharded over the ranks: every image once, sums added up, the same scores on any number of ranks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Iterator, Optional, Sequence

import cv2
import numpy as np
import torch
import torch.distributed as dist

from fgmoe_dist.data.augment import EvalTransform, padding
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import evaluation_samples
from fgmoe_dist.drawing.panel import panel
from fgmoe_dist.evaluation.scorer import Scorer
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.model import Model
from fgmoe_dist.progress import track
from fgmoe_dist.ranks import Ranks

Scores = dict[str, dict[str, float]]


def evaluate(
    model: Model,
    shards: ShardSet,
    transform: EvalTransform,
    ranks: Ranks,
    *,
    workers: int = 0,
    max_bad_samples: int = 0,
    constants: Optional[dict[str, ConstantBaseline]] = None,
    pictures: int = 0,
    pictures_folder: Optional[Path] = None,
    predictions_folder: Optional[Path] = None,
    limit: Optional[int] = None,
) -> Scores:
    """`{task: {metric: value}}` of `model` on all of `shards`; a collective call, the same result on every rank.

    `workers` processes of each rank load images, and as many count what was predicted. `constants`, by task, see the
    labels in the same pass. `pictures` images, evenly spread over the set, are drawn into `pictures_folder`; every
    prediction is saved in `predictions_folder`, as `fgmoe score` reads them. `limit` stops after so many images a rank,
    for a trial.
    """
    was_training = model.training
    model.eval()
    names = [task.name for task in model.tasks]
    meters = {task.name: task.meter() for task in model.tasks}
    constants = constants or {}
    classes = {name: shards.classes[name] for name in names if name in shards.classes}
    first, count = ranks.rank * shards.samples // ranks.world, -(-shards.samples // ranks.world)
    samples = evaluation_samples(
        shards,
        names,
        rank=ranks.rank,
        world=ranks.world,
        workers=workers,
        transform=transform,
        max_bad_samples=max_bad_samples,
    )
    samples, count = islice(samples, limit), min(count, limit or count)
    in_step = _in_step(samples, transform.size_hw, ranks.device)
    in_step = enumerate(track(in_step, "evaluating", count) if ranks.is_first else in_step, first)
    with Scorer(meters, constants, workers) as scorer:
        for index, (sample, image_3HW) in in_step:
            predictions = model.predict(image_3HW[None].to(ranks.device))
            if sample is None:  # this rank has no image left; others needed its experts
                continue
            cropped = {name: _crop(predictions[name][0], sample["image"].shape[:2]) for name in names}
            scorer.update(cropped, sample)
            if pictures_folder and _is_pictured(index, shards.samples, pictures):
                panel(sample["image"], cropped, sample, classes, pictures_folder / f"{sample['id']}.png", sample["id"])
            if predictions_folder:
                save_predictions(predictions_folder, sample["id"], cropped)
    _add_over_ranks([*meters.values(), *constants.values()], ranks.device)
    model.train(was_training)
    return {name: meter.compute() for name, meter in meters.items()}


def save_predictions(folder: Path, id_: str, predictions: dict[str, np.ndarray]) -> None:
    """`folder/<task>/<id>.npy` for floating-point predictions, `.png` for uint8 ones."""
    for name, prediction in predictions.items():
        path = folder / name / f"{id_}.{'png' if prediction.dtype == np.uint8 else 'npy'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if prediction.dtype == np.uint8:
            cv2.imwrite(str(path), prediction)
        else:
            np.save(path, prediction)


def _in_step(samples: Iterator, size_hw: tuple[int, int], device: torch.device) -> Iterator:
    """The rank's samples, then blank images until every rank is through: each forward pass is a collective."""
    blank_3HW = torch.zeros(3, *size_hw)
    while True:
        sample, image_3HW = next(samples, (None, blank_3HW))
        waiting = torch.tensor(int(sample is not None), device=device)
        dist.all_reduce(waiting)
        if waiting.item() == 0:
            return
        yield sample, image_3HW


def _crop(prediction: np.ndarray, native_hw: tuple[int, int]) -> np.ndarray:
    """`[H, W]` or `[H, W, C]` without the centred padding."""
    top, left = (padding(inner, outer) for inner, outer in zip(native_hw, prediction.shape[:2]))
    return prediction[top : top + native_hw[0], left : left + native_hw[1]]


def _is_pictured(index: int, samples: int, pictures: int) -> bool:
    return index in {picture * samples // pictures for picture in range(pictures)}


def _add_over_ranks(meters: Sequence, device: torch.device) -> None:
    for meter in meters:
        mine = meter.state()
        everyone = torch.from_numpy(mine.copy()).to(device)
        dist.all_reduce(everyone)
        meter.merge(everyone.cpu().numpy() - mine)
