"""Saved predictions against labels: the meters of `fgmoe evaluate`, over files from any method, on all cores.

Predictions lie in `FOLDER/<task>/<id>.png` or `.npy` as docs/contracts.md describes them; normals may also be uint8
RGB, n = 2x/255 - 1. Nothing is resized or clipped: what does not fit is refused by name.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgmoe_dist.data import codec
from fgmoe_dist.data.layouts import Layout
from fgmoe_dist.data.shardset import Shard, ShardSet, decode_sample, read_shard
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.metrics.meters import DepthMeter
from fgmoe_dist.progress import track

Metrics = dict[str, float]


@dataclass
class Scored:
    """What scoring gives: a meter a task that has seen everything, and each image's own metrics `{id: {task: ...}}`."""

    meters: dict[str, Meter]
    images: dict[str, dict[str, Metrics]] = field(default_factory=dict)

    def scores(self) -> dict[str, Metrics]:
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
IMAGES_A_PART = 4


def archive_parts(layout: Layout, split: str, only: Sequence[str] | None = None) -> list[Part]:
    """A split of an archive in pieces of work; `only` restricts it to some ids."""
    ids = _choose(layout.ids(split), only, f"the {split} split of {layout.root}")
    return [ArchivePart(layout, ids[k : k + IMAGES_A_PART]) for k in range(0, len(ids), IMAGES_A_PART)]


def shard_parts(shards: ShardSet, only: Sequence[str] | None = None) -> list[Part]:
    """A shard set in pieces of work; `only` restricts it to some ids."""
    every = [id_ for shard in shards.shards for id_ in shard.ids]
    chosen = set(_choose(every, only, f"the {shards.dataset} {shards.split} shards"))
    parts = [ShardPart(shard, tuple(id_ for id_ in shard.ids if id_ in chosen)) for shard in shards.shards]
    return [part for part in parts if part.ids]


def score(parts: Sequence[Part], meters: dict[str, Meter], predictions: Path, workers: int = 1) -> Scored:
    """Score every image of `parts` on every task of `meters` (fresh ones; they say how).

    Args:
        predictions: folder of `<task>/<id>.png|npy`. An image without a task's label needs no prediction for it.
        workers: processes; the result does not depend on it.

    Raises:
        UserError: a prediction is missing, unreadable, or not what docs/contracts.md asks for.
    """
    for task in meters:
        if not (predictions / task).is_dir():
            raise UserError(
                f"predictions folder {predictions} has no {task}/: save {task}/<id>.png|npy or drop the task"
            )
    result = Scored({task: meter.empty() for task, meter in meters.items()})
    with ExitStack() as stack:
        jobs = [(part, meters, predictions) for part in parts]
        for one in track(_run(jobs, min(workers, len(parts)), stack), "scoring", len(parts)):
            for task, meter in one.meters.items():
                result.meters[task].merge(meter.state())
            result.images.update(one.images)
    return result


def _run(jobs: list[tuple], workers: int, stack: ExitStack) -> Iterable[Scored]:
    if workers <= 1:
        return map(_score_part, jobs)
    # Started afresh: a fork of a process that holds threads of torch or OpenCV may hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool.map(_score_part, jobs)


def _score_part(job: tuple[Part, dict[str, Meter], Path]) -> Scored:
    part, meters, predictions = job
    result = Scored({task: meter.empty() for task, meter in meters.items()})
    for sample in part.samples(list(meters)):
        for task, meter in result.meters.items():
            if meter.label not in sample:
                continue
            alone = meter.empty()
            alone.update(read_prediction(predictions, task, sample["id"]), sample)
            meter.merge(alone.state())
            result.images.setdefault(sample["id"], {})[task] = alone.compute()
    return result


def read_prediction(folder: Path, task: str, id_: str) -> np.ndarray:
    """The saved prediction of a task for an image, as its meter takes it.

    Raises:
        UserError: no such file, one of each kind, or an unreadable one.
    """
    paths = [path for suffix in (".png", ".npy") if (path := folder / task / f"{id_}{suffix}").is_file()]
    if len(paths) != 1:
        fault = "both exist: remove one" if paths else "missing: predict it, or name the images with --images"
        raise UserError(f"prediction {folder / task / id_}.png or .npy is {fault}")
    try:
        array = _read_npy(paths[0]) if paths[0].suffix == ".npy" else _read_png(paths[0])
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f"prediction {paths[0]} cannot be read ({_first_line(error)}); save it again") from error
    return _CONVERT.get(task, _as_it_is)(array, f"prediction {paths[0]}")


def _as_it_is(array: np.ndarray, name: str) -> np.ndarray:
    return array


def _normals(array: np.ndarray, name: str) -> np.ndarray:
    """Unit vectors. The meter brings any length to one and would not notice colours that nobody decoded."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) * np.float32(2 / 255) - 1
    if np.issubdtype(array.dtype, np.floating) and (largest := np.abs(array).max(initial=0)) > 1.01:
        raise UserError(
            f"{name} has components up to {largest:.3g}; save unit vectors, or uint8 RGB with n = 2x/255 - 1"
        )
    return array


def _depth(array: np.ndarray, name: str) -> np.ndarray:
    """Metres. The median tells another unit from a few wild pixels, which are scored."""
    floating = np.issubdtype(array.dtype, np.floating) and array.size
    if floating and (median := float(np.median(array))) > DepthMeter.MAX_METRES:
        raise UserError(f"{name} is {median:.3g} m at the median; save metres, not another unit")
    return array


_CONVERT = {"normals": _normals, "depth": _depth}


def _read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file; nothing is unpickled, and no archive is opened as `np.load` would."""
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _read_png(path: Path) -> np.ndarray:
    """Values as stored: of a palette image the indices, not the colours."""
    with Image.open(path) as image:
        return np.array(image)


def _choose(ids: Sequence[str], only: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if only is None:
        return tuple(ids)
    known = set(ids)
    for id_ in only:
        if id_ not in known:
            raise UserError(f"no image {id_!r} in {where}: correct the list of images")
    wanted = set(only)
    return tuple(id_ for id_ in ids if id_ in wanted)
