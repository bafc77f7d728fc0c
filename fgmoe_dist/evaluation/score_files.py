"""Saved predictions against labels: the meters of `fgmoe evaluate`, over files from any method, on all cores.

Predictions lie in `FOLDER/<task>/<id>.png` or `.npy` (`predictions`). Nothing is resized or clipped: what does not fit
is refused by name.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgmoe_dist.data import codec
from fgmoe_dist.data.layouts import Layout
from fgmoe_dist.data.shardset import Shard, ShardSet, decode_sample, read_shard
from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.predictions import read_prediction
from fgmoe_dist.metrics.meter import Meter, Metrics, Scores
from fgmoe_dist.plugins import Plugged
from fgmoe_dist.progress import track
from fgmoe_dist.tasks import Task


@dataclass
class Scored:
    """What scoring gives: for each task a meter that has seen everything, and by image and task the image's metrics."""

    meters: dict[str, Meter]
    images: dict[str, dict[str, Metrics]] = field(default_factory=dict)

    def scores(self) -> Scores:
        return {task: meter.compute() for task, meter in self.meters.items()}

    def details(self) -> dict[str, Any]:
        """Finer figures by task (IoU of each class, ...), and every image's metrics."""
        return {"tasks": {task: meter.details() for task, meter in self.meters.items()}, "images": self.images}


@dataclass(frozen=True)
class ArchivePart:
    """Some images of an archive on disk."""

    layout: Layout
    ids: tuple[str, ...]

    def samples(self, tasks: Sequence[str]) -> Iterator[dict]:
        return map(self.layout.read, self.ids)


@dataclass(frozen=True)
class ShardPart:
    """Some images of one shard."""

    shard: Shard
    ids: tuple[str, ...]

    def samples(self, tasks: Sequence[str]) -> Iterator[dict]:
        keys = codec.keys_of(tasks, evaluation=True, labels=self.shard.labels)
        entries = read_shard(self.shard)
        for id_ in self.ids:
            yield codec.native_sample(decode_sample(self.shard, id_, entries[id_], keys), self.shard.labels)


Part = ArchivePart | ShardPart
IMAGES_PER_PART = 4


def archive_parts(layout: Layout, split: str, only: Sequence[str] | None = None) -> list[Part]:
    """A split of an archive in pieces of work; `only` restricts it to some ids."""
    ids = _choose(layout.ids(split), only, f"the {split} split of {layout.root}")
    return [ArchivePart(layout, ids[k : k + IMAGES_PER_PART]) for k in range(0, len(ids), IMAGES_PER_PART)]


def shard_parts(shards: ShardSet, only: Sequence[str] | None = None) -> list[Part]:
    """A shard set in pieces of work; `only` restricts it to some ids."""
    every = [id_ for shard in shards.shards for id_ in shard.ids]
    chosen = set(_choose(every, only, f"the {shards.dataset} {shards.split} shards"))
    parts = [ShardPart(shard, tuple(id_ for id_ in shard.ids if id_ in chosen)) for shard in shards.shards]
    return [part for part in parts if part.ids]


def score(parts: Sequence[Part], tasks: Sequence[Task], predictions: Path, workers: int = 1) -> Scored:
    """Score every image of `parts` on every task.

    Args:
        predictions: folder of `<task>/<id>.png|npy`. An image without a task's label needs no prediction for it.
        workers: processes; the result does not depend on it.

    Raises:
        UserError: a prediction is missing, unreadable, or not what docs/contracts.md asks for.
    """
    for task in tasks:
        if not (predictions / task.name).is_dir():
            raise UserError(
                f"predictions folder {predictions} has no {task.name}/: save {task.name}/<id>.png|npy or drop the task"
            )
    result = Scored({task.name: task.meter() for task in tasks})
    with ExitStack() as stack:
        jobs = [(part, list(tasks), predictions) for part in parts]
        for one in track(_run(jobs, min(workers, len(parts)), stack), "scoring", len(parts)):
            for name, meter in one.meters.items():
                result.meters[name].merge(meter.state())
            result.images.update(one.images)
    return result


def _run(jobs: list[tuple], workers: int, stack: ExitStack) -> Iterable[Scored]:
    if workers <= 1:
        return map(_score_part, jobs)
    # Started afresh: a fork of a process that holds threads of torch or OpenCV may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_process, (Plugged(),))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool.map(_score_part, jobs)


def _start_process(_: Plugged) -> None:
    """The plug-ins are there by now, and work may come."""


def _score_part(job: tuple[Part, list[Task], Path]) -> Scored:
    part, tasks, predictions = job
    result = Scored({task.name: task.meter() for task in tasks})
    for sample in part.samples([task.name for task in tasks]):
        for task in tasks:
            meter = result.meters[task.name]
            if meter.label not in sample:
                continue
            alone = meter.empty()
            alone.update(read_prediction(predictions, task, sample["id"]), sample)
            meter.merge(alone.state())
            result.images.setdefault(sample["id"], {})[task.name] = alone.compute()
    return result


def _choose(ids: Sequence[str], only: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if only is None:
        return tuple(ids)
    known = set(ids)
    for id_ in only:
        if id_ not in known:
            raise UserError(f"no image {id_!r} in {where}: correct the list of images")
    wanted = set(only)
    return tuple(id_ for id_ in ids if id_ in wanted)
