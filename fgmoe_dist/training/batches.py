"""Where a run's samples come from: shards of a data set, or made up for a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Protocol

import torch

from fgmoe_dist.config import Config
from fgmoe_dist.data.augment import FeatureTransform, train_transform
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import train_batches
from fgmoe_dist.encoders.features import check_cache
from fgmoe_dist.encoders.frozen import FrozenEncoder
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.tasks import DatasetInfo, create_tasks
from fgmoe_dist.tasks.agreement import differences


class Samples(Protocol):
    """What a trainer asks of its data."""

    info: DatasetInfo
    count: int  # training images

    def check(self, config: Config, encoder: FrozenEncoder) -> None:
        """UserError where the data cannot serve this run."""

    def batches(self, config: Config, encoder: FrozenEncoder, ranks: Ranks, start_step: int) -> Iterator[dict]:
        """This rank's micro-batches, from a step of the run on."""


class ShardSamples:
    """Training and validation shards, as `data.train` and `data.val` name them."""

    def __init__(self, config: Config):
        self.train, self.val = ShardSet.open(config.data.train), ShardSet.open(config.data.val)
        if found := differences(config.tasks, self.train, self.val, ("data.train", "data.val")):
            raise UserError(
                f"data.train and data.val have other classes or definitions ({'; '.join(found)});"
                " build both from one data set"
            )
        self.info, self.count = self.train, self.train.samples

    def check(self, config: Config, encoder: FrozenEncoder) -> None:
        check_cache(self.train, self.val, config, encoder)

    def batches(self, config: Config, encoder: FrozenEncoder, ranks: Ranks, start_step: int) -> Iterator[dict]:
        data, train, cache, labels = config.data, config.train, self.train.cache, self.train.labels
        if cache:
            transform = FeatureTransform(data.image_size, config.tasks, cache.levels_Chw, labels)
        else:
            transform = train_transform(data, encoder.mean, encoder.std, config.tasks, labels)
        return train_batches(
            self.train, config.tasks, batch_size=train.batch_size, micro_batch_size=train.micro_batch_size,
            rank=ranks.rank, world=ranks.world, seed=config.run.seed, start_step=start_step,
            workers=data.workers, transform=transform, views=data.views, max_bad_samples=data.max_bad_samples,
        )  # fmt: skip


class RandomSamples:
    """One micro-batch of noise, over and over: no data set, for measurements."""

    def __init__(self, info: DatasetInfo):
        self.info, self.count = info, 1

    def check(self, config: Config, encoder: FrozenEncoder) -> None: ...

    def batches(self, config: Config, encoder: FrozenEncoder, ranks: Ranks, start_step: int) -> Iterator[dict]:
        images, size_hw = config.train.micro_batch_size, tuple(config.data.image_size)
        batch: dict = {"image": torch.randn(images, 3, *size_hw)}
        for task in create_tasks(config.tasks, self.info):
            label = task.label.empty(images, size_hw)
            batch[task.name] = (
                torch.rand_like(label) + 0.5 if label.is_floating_point() else torch.randint_like(label, 2)
            )
        return repeat(batch)
