"""Cached encoder features: since the encoder is frozen, what it makes of an augmented image need be computed only once.

A cache holds K numbered views of each image of a training set: the encoder's levels as float16, and the labels cropped
as the image was. View v of an image is a function of (seed, image id, v) alone, so a run on images with `data.views: K`
and the same seed sees the very same views. Epoch e reads view e mod K.

On disk it is a folder of `view-00`, `view-01`, ..., each a set of shards like any other, whose shard n holds the images
of shard n of the set they were made from; so the order of the data is that of the images too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgmoe_dist.config import Config
from fgmoe_dist.data import codec
from fgmoe_dist.data.augment import train_transform, view_generator
from fgmoe_dist.data.shard_writer import claim, finish, index, is_finished, record, write_shard
from fgmoe_dist.data.shardset import BadSample, Shard, ShardSet, decode_sample, read_shard
from fgmoe_dist.data.stream import as_it_is, start_worker
from fgmoe_dist.encoders.frozen import FrozenEncoder, create_encoder
from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import Plugged
from fgmoe_dist.progress import track
from fgmoe_dist.ranks import Ranks, barrier, from_first

T = TypeVar("T")


def made_with(config: Config, encoder: FrozenEncoder) -> dict:
    """What decides the values of cached features, beside the images and the seed; equal before and after JSON."""
    return {
        "encoder.name": config.encoder.name,
        "encoder.weights": f"{encoder.source}, sha256 {encoder.checksum}",
        "encoder.precision": config.encoder_precision,
        "encoder.taps": list(encoder.taps),
        "data.image_size": list(config.data.image_size),
        "data.augment": config.data.augment,
        "data.scale_range": list(config.data.scale_range) if config.data.augment else None,
    }


def check_cache(train: ShardSet, val: ShardSet, config: Config, encoder: FrozenEncoder) -> None:
    """Raise `UserError` where cached features stand in images' place, or are not what this run's encoder would make."""
    if val.cache:
        raise UserError(f"data.val {config.data.val} holds cached features: evaluation needs shards of images")
    if train.cache is None:
        return
    for key, wanted in made_with(config, encoder).items():
        found = train.cache.made_with.get(key)
        if found != wanted:
            raise UserError(
                f"data.train {config.data.train}: its features were made with {key} = {found}, this run has {wanted}; "
                "use the same, or build others with `fgmoe shards features`"
            )
    if config.data.views not in (0, len(train.cache.views)):
        raise UserError(
            f"data.views is {config.data.views}, but data.train {config.data.train} holds {len(train.cache.views)} "
            "views: leave it at 0"
        )


def build_features(config: Config, out: str | Path, views: int, ranks: Ranks, *, workers: int = 0) -> ShardSet:
    """Write the features of `views` augmented views of every image of `data.train`; all ranks together, or one process.

    A finished cache of the same features is left as it is; an unfinished one is continued.

    Args:
        config: of the runs that will read them: its encoder, image size, augmentation and seed.
        out: folder of the cache.
        views: K, at least 1.
        ranks: of the process group, if there is one; the shards are dealt to them.
        workers: processes a rank that read and augment; 0 does it here.

    Raises:
        UserError: the set cannot be read, holds features itself, `out` holds something else, or a feature is too
            large for float16.
    """
    if views < 1:
        raise UserError(f"--views {views}: give at least 1")
    source = ShardSet.open(config.data.train)
    if source.cache:
        raise UserError(f"data.train {config.data.train} holds features already: name the shards of images")
    encoder = create_encoder(config).to(ranks.device)
    out = Path(out)
    plan = {
        "made_with": made_with(config, encoder),
        "seed": config.run.seed,
        "views": views,
        "fingerprint": hashlib.sha256("".join(shard.sha256 for shard in source.shards).encode()).hexdigest(),
    }
    if from_first(lambda: is_finished(out, plan)):
        return ShardSet.open(out)
    from_first(lambda: claim(out, plan))
    folders = [out / f"view-{view:02d}" for view in range(views)]
    jobs = [_Job(shard, view, folder / shard.name) for view, folder in enumerate(folders) for shard in source.shards]
    mine = jobs[ranks.rank :: ranks.world]
    levels = _write_all(mine, _Views(config, encoder, source), encoder, workers, ranks.is_first)
    if ranks.world > 1:
        barrier()
    from_first(lambda: _finish(out, source, plan, folders, levels))
    return ShardSet.open(out)


def _finish(out: Path, source: ShardSet, plan: dict, folders: list[Path], levels: list[list[int]]) -> None:
    """Write the index of each view, then the one that makes the cache whole."""
    keys = ("features", *source.tasks)
    for folder in folders:
        records = [record(folder / shard.name, shard.ids) for shard in source.shards]
        finish(folder, index(source, source.split, keys, records, plan))
    names = {"views": [folder.name for folder in folders], "levels": levels, "made_with": plan["made_with"]}
    finish(out, {**index(source, source.split, keys, [], plan), "samples": source.samples, **names})


@dataclass(frozen=True)
class _Job:
    """One view of one shard of images, and the shard of features that it becomes."""

    shard: Shard
    view: int
    path: Path


class _Views(Dataset):
    """The augmented images and labels of a job; what cannot be read comes as the error, which is the user's.

    All are arrays: tensors would come by shared memory, and where that is full torch waits for ever.
    """

    def __init__(self, config: Config, encoder: FrozenEncoder, source: ShardSet):
        self.plugged = Plugged()  # first in what a worker is sent
        self.transform = train_transform(config.data, encoder.mean, encoder.std, source.tasks, source.labels)
        self.seed = config.run.seed
        self.jobs: list[_Job] = []

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> tuple[_Job, np.ndarray, list[dict[str, np.ndarray]]] | BadSample:
        job = self.jobs[number]
        images_B3HW, labels = torch.zeros(job.shard.samples, 3, *self.transform.size_hw), []
        try:
            for image_3HW, (id_, entries) in zip(images_B3HW, read_shard(job.shard).items()):
                sample = decode_sample(job.shard, id_, entries, self.transform.keys)
                labels.append(self.transform.view(sample, view_generator(self.seed, id_, job.view), image_3HW))
        except BadSample as fault:
            return fault
        return job, images_B3HW.numpy(), labels


def _write_all(
    jobs: list[_Job], views: _Views, encoder: FrozenEncoder, workers: int, is_shown: bool
) -> list[list[int]]:
    """Write the shards that are not there yet; the shape of each of the encoder's levels."""
    for folder in {job.path.parent for job in jobs}:
        folder.mkdir(exist_ok=True)
    views.jobs = [job for job in jobs if not job.path.exists()]
    loader = DataLoader(
        views, batch_size=None, num_workers=workers, worker_init_fn=start_worker() if workers else None,
        multiprocessing_context="forkserver" if workers else None, prefetch_factor=1 if workers else None,
        collate_fn=as_it_is,
    )  # fmt: skip
    for item in track(loader, "encoding shards", len(views)) if is_shown else loader:
        if isinstance(item, BadSample):
            raise item
        job, images_B3HW, labels = item
        features = (_encode(encoder, torch.from_numpy(image)[None], job) for image in images_B3HW)
        entries = (entry for id_, flat, stored in zip(job.shard.ids, features, labels)
                   for entry in _entries(id_, {"features": flat, **stored}, job.shard))  # fmt: skip
        write_shard(job.path, entries)
    device = next(encoder.parameters()).device
    return [list(level.shape[1:]) for level in encoder(torch.zeros(1, 3, *encoder.image_size_hw, device=device))]


def _encode(encoder: FrozenEncoder, image_13HW: Tensor, job: _Job) -> np.ndarray:
    """float16 [values] of all levels of one image.

    One by one, because a batch rounds otherwise: the same image has the same features, whatever shard it lies in.
    """
    levels = encoder(image_13HW.to(next(encoder.parameters()).device))
    flat = torch.cat([level.flatten() for level in levels]).half()
    if not flat.isfinite().all():
        raise UserError(f"features of {job.shard.url} exceed what float16 holds: this encoder cannot be cached")
    return flat.cpu().numpy()


def _entries(id_: str, stored: dict[str, np.ndarray], shard: Shard) -> Iterator[tuple[str, bytes]]:
    for key, array in stored.items():
        extension, data = codec.encode(key, np.ascontiguousarray(array), shard.labels)
        yield f"{id_}.{key}.{extension}", data
