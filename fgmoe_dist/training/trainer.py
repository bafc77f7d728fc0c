"""Everything a training run is made of, built from a configuration, and one optimiser step of it."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from fgmoe_dist.config import Config, check_world
from fgmoe_dist.data.augment import EvalTransform, FeatureTransform
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import train_batches
from fgmoe_dist.decoders.base import Auxiliary, Output
from fgmoe_dist.encoders.features import check_cache, train_transform
from fgmoe_dist.errors import UserError
from fgmoe_dist.model import Model, create_model
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.tasks import Task
from fgmoe_dist.training.engines.deepspeed import create_engine, prepare, set_learning_rate
from fgmoe_dist.training.schedule import learning_rate


@dataclass
class StepReport:
    """What one optimiser step measured; losses are means over all images of the step on this rank."""

    losses: dict[str, Tensor]  # by task, "total", and the decoder's own under the names it logs them by
    counts: dict[str, Tensor]  # the decoder's, over all ranks
    grad_norm: float
    lr: float
    seconds: float
    wait_seconds: float  # of them, waiting for data


class Trainer:
    """A run's data, model and engine on this rank."""

    def __init__(self, config: Config, ranks: Ranks):
        check_world(config, ranks.world)
        self.config, self.ranks, self.step = config, ranks, 0
        self.train_shards = ShardSet.open(config.data.train)
        self.val_shards = ShardSet.open(config.data.val)
        if self.train_shards.classes != self.val_shards.classes:
            raise UserError("data.train and data.val name other classes; build both from one data set")
        prepare(config.parallel.ep_size)
        model = create_model(config, self.train_shards).to(ranks.device)
        check_cache(self.train_shards, self.val_shards, config, model.encoder)
        self.model: Model = model
        self.engine = create_engine(model.decoder, config)
        # Asked now, in the precision that the engine has given it: a kernel that cannot run here ends no training.
        self.notes: list[str] = model.decoder.notes()
        self.eval_transform = EvalTransform(config.data.image_size, model.encoder.mean, model.encoder.std)
        self._batches: Iterator[dict] | None = None

    @property
    def tasks(self) -> list[Task]:
        return self.model.tasks

    def batches(self) -> Iterator[dict]:
        """This rank's micro-batches from the current step on."""
        data, train, cache = self.config.data, self.config.train, self.train_shards.cache
        if cache:
            transform = FeatureTransform(data.image_size, self.config.tasks, cache.levels_Chw)
        else:
            transform = train_transform(self.config, self.model.encoder, self.config.tasks)
        return train_batches(
            self.train_shards, self.config.tasks, batch_size=train.batch_size, micro_batch_size=train.micro_batch_size,
            rank=self.ranks.rank, world=self.ranks.world, seed=self.config.run.seed, start_step=self.step,
            workers=data.workers, transform=transform, views=data.views,
            max_bad_samples=data.max_bad_samples,
        )  # fmt: skip

    def train_step(self) -> StepReport:
        """One optimiser step over the global batch: accumulate, reduce, clip, update."""
        if self._batches is None:
            self._batches = self.batches()
        self.engine.train()
        lr = learning_rate(self.config.train, self.step)
        set_learning_rate(self.engine, lr)
        start, wait, sums, counts = time.perf_counter(), 0.0, {}, {}
        accumulation = self.engine.gradient_accumulation_steps()
        for part in range(accumulation):
            asked = time.perf_counter()
            batch = next(self._batches)
            wait += time.perf_counter() - asked
            _seed_noise(self.config.run.seed, self.step, self.ranks.rank * accumulation + part)
            losses, auxiliary = self.losses(self.engine(self._levels(batch)), batch)
            self.engine.backward(losses["total"])
            self.engine.step()
            for name, count in auxiliary.counts.items():
                counts[name] = counts.get(name, 0) + count
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / accumulation
        self.step += 1
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        self._check_finite(norm, sums)
        self.model.decoder.after_step(counts)
        return StepReport(sums, counts, norm, lr, time.perf_counter() - start, wait)

    def _check_finite(self, norm: float, losses: dict[str, Tensor]) -> None:
        """Ends a run that has diverged, on every rank alike, since the norm is the same everywhere.

        DeepSpeed would skip the step under ZeRO 1 and 2, and ruin the weights under ZeRO 0; it reports -1 for NaN.
        """
        if math.isfinite(norm) and norm >= 0:
            return
        here = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
        raise UserError(
            f"step {self.step}: the gradient is not finite (losses on this rank: {here}); lower train.lr, raise"
            f" train.warmup_steps, or look at the labels. The last checkpoint is from before"
        )

    def _levels(self, batch: dict) -> list[Tensor]:
        """What the frozen encoder makes of a batch's images, or the cached features that stand in their place."""
        device = self.ranks.device
        if "image" in batch:
            return self.model.encoder(batch["image"].to(device, non_blocking=True))
        return [level.to(device, non_blocking=True) for level in batch["features"]]

    def losses(self, output: Output, batch: dict) -> tuple[dict[str, Tensor], Auxiliary]:
        """Each task's loss, the decoder's own, and their weighted `total`."""
        train, losses = self.config.train, {}
        for task in self.tasks:
            target = batch[task.name].to(self.ranks.device, non_blocking=True)
            losses[task.name] = _task_loss(task, output.predictions[task.name], target, train.loss_average)
        total = sum(train.loss_weights.get(task.name, 1.0) * losses[task.name] for task in self.tasks)
        auxiliary = self.model.decoder.auxiliary(output)
        for name, (weight, loss) in auxiliary.losses.items():
            losses[name] = loss
            total = total + weight * loss
        return losses | {"total": total}, auxiliary


def mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses of the whole global batch; a collective."""
    values = torch.stack([loss.detach().double() for loss in losses.values()])
    dist.all_reduce(values)
    return dict(zip(losses, (values / dist.get_world_size()).tolist()))


def _task_loss(task: Task, prediction_BKHW: Tensor, target: Tensor, average: str) -> Tensor:
    if average == "batch":
        return task.loss(prediction_BKHW, target)
    images = zip(prediction_BKHW.split(1), target.split(1))
    return torch.stack([task.loss(prediction, label) for prediction, label in images]).mean()


def _seed_noise(seed: int, step: int, micro_batch: int) -> None:
    """Noise belongs to the images, so that a resumed run draws it as the unbroken one, on any number of ranks.

    Seeded after the batch is there: a loader draws from the same generator when it starts.
    """
    digest = hashlib.sha256(f"{seed} {step} {micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
