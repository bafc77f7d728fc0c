"""Everything a training run is made of, built from a configuration, and one optimiser step of it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fgmoe_dist.config import Config, check_world
from fgmoe_dist.data.augment import EvalTransform
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.decoders.base import Auxiliary, Decoder, Output
from fgmoe_dist.errors import UserError
from fgmoe_dist.model import Model, create_model
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.tasks import Task
from fgmoe_dist.tasks.class_balance import ClassBalance
from fgmoe_dist.tasks.class_balance import update as update_balances
from fgmoe_dist.training.batches import Samples, ShardSamples
from fgmoe_dist.training.engines import Engine, load_engine
from fgmoe_dist.training.losses import task_losses
from fgmoe_dist.training.schedule import learning_rate
from fgmoe_dist.weighting import create_weighting
from fgmoe_dist.weighting.base import Around
from fgmoe_dist.weighting.weighing import Weighing


@dataclass
class StepReport:
    """What one optimiser step measured; losses are means over all images of the step on this rank."""

    losses: dict[str, Tensor]  # by task, "total", and the decoder's own under the names it logs them by
    counts: dict[str, Tensor]  # the decoder's, over all ranks
    weights: dict[str, float]  # `weight/<task>`, the factors that the weighting method gave the losses
    grad_norm: float
    lr: float
    seconds: float
    wait_seconds: float  # of them, waiting for data


class Trainer:
    """A run's data, model and engine on this rank.

    Args:
        samples: by default the shards that `config` names.
        engine: a name of `ENGINES`, by default `parallel.engine`.

    Attributes:
        stage: called with "data", "encoder", "forward", "backward" or "update", gives the context that this stage of a
            step runs in; whoever measures puts a clock there.
    """

    def __init__(self, config: Config, ranks: Ranks, samples: Samples | None = None, engine: str = ""):
        check_world(config, ranks.world)
        self.config, self.ranks, self.step = config, ranks, 0
        self.samples: Samples = samples or ShardSamples(config)
        self.engine_name = engine or config.parallel.engine
        module = load_engine(self.engine_name)
        module.prepare(config.parallel.ep_size)
        self.model: Model = create_model(config, self.samples.info).to(ranks.device)
        self.samples.check(config, self.model.encoder)
        self.engine: Engine = module.create_engine(self.model.decoder, config)
        self.weighing = create_weighing(config, self.samples.count, self.model.decoder, self.engine.accumulation)
        self.eval_transform = EvalTransform(config.data.image_size, self.model.encoder.mean, self.model.encoder.std)
        # Asked now, in the precision that the engine has given it: a kernel that cannot run here ends no training.
        self.notes: list[str] = self.model.decoder.notes()
        self.stage: Callable[[str], AbstractContextManager] = nullcontext
        self._batches: Iterator[dict] | None = None
        self._wait = 0.0  # seconds of this step that went by until its data was there

    @property
    def train_shards(self) -> ShardSet:
        return self.samples.train

    @property
    def val_shards(self) -> ShardSet:
        return self.samples.val

    @property
    def tasks(self) -> list[Task]:
        return self.model.tasks

    @property
    def balances(self) -> dict[str, ClassBalance]:
        """Of the tasks that weigh their classes."""
        return {task.name: task.balance for task in self.tasks if getattr(task, "balance", None) is not None}

    def train_step(self) -> StepReport:
        """One optimiser step over the global batch: accumulate, reduce, clip, update."""
        if self._batches is None:
            self._batches = self.samples.batches(self.config, self.model.encoder, self.ranks, self.step)
        self.engine.train()
        lr = learning_rate(self.config.train, self.step)
        self.engine.set_learning_rate(lr)
        start, sums, counts, accumulation = time.perf_counter(), {}, {}, self.engine.accumulation
        self._wait = 0.0
        self.weighing.begin(self.step)
        batches = self._look_ahead(accumulation)
        for part in range(accumulation):
            batch = batches[part] if part < len(batches) else self._next_batch()
            if self.weighing.looks_back and part == len(batches):
                batches.append(batch)
            losses, auxiliary = self._micro_batch(batch, part, accumulation)
            _add(counts, auxiliary.counts)
            _add(sums, {name: loss.detach() / accumulation for name, loss in losses.items()})
        norm = self.engine.grad_norm
        self._check_finite(norm, sums)
        if self.weighing.looks_back:
            self._look_again(batches, self.weighing.look_back)
        self.step += 1
        self.model.decoder.after_step(counts)
        update_balances(list(self.balances.values()), self.ranks.device)
        return StepReport(sums, counts, self.weighing.finish(), norm, lr, time.perf_counter() - start, self._wait)

    def _micro_batch(self, batch: dict, part: int, accumulation: int) -> tuple[dict[str, Tensor], Auxiliary]:
        """Forward and backward of one part of the step: its losses, and the decoder's counts."""
        self._seed_noise(part)
        with self.stage("encoder"):
            levels = self._levels(batch)
        with self.stage("forward"):
            output = self.engine(levels)
            losses, auxiliary = self.losses(output, batch)
        last, others = part == accumulation - 1, auxiliary.losses.values()
        weighed = self.weighing.backward(others, 1 / accumulation, last, output.feature)
        with self.stage("backward"), weighed:
            self.engine.backward(losses["total"])
        with self.stage("update"):
            self.engine.step()
        return losses, auxiliary

    def _next_batch(self) -> dict:
        asked = time.perf_counter()
        with self.stage("data"):
            batch = next(self._batches)
        self._wait += time.perf_counter() - asked
        return batch

    def _look_ahead(self, accumulation: int) -> list[dict]:
        """The step's batches, for a method that needs their losses before; of a single one the step itself tells."""
        if not self.weighing.looks_ahead or accumulation == 1:
            return []
        batches = [self._next_batch() for _ in range(accumulation)]
        self._look_again(batches, self.weighing.look_ahead)
        return batches

    @torch.no_grad()
    def _look_again(self, batches: list[dict], tell: Callable[[list[Tensor], float], None]) -> None:
        """Tells the weighting method the losses of the step's batch by the weights as they are now."""
        for part, batch in enumerate(batches):
            self._seed_noise(part)
            _, whole_T = self._task_losses(self.model.decoder(self._levels(batch)), batch)
            tell(whole_T, 1 / len(batches))

    def _seed_noise(self, part: int) -> None:
        """Noise belongs to the images, so that a resumed run draws it as the unbroken one, on any number of ranks.

        Seeded after the batch is there: a loader draws from the same generator when it starts.
        """
        micro_batch = self.ranks.rank * self.engine.accumulation + part
        digest = hashlib.sha256(f"{self.config.run.seed} {self.step} {micro_batch}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def _check_finite(self, norm: float, losses: dict[str, Tensor]) -> None:
        """Ends a run that has diverged, on every rank alike, since the norm is the same everywhere.

        DeepSpeed would skip the step under ZeRO 1 and 2, and ruin the weights under ZeRO 0; it reports -1 for NaN.
        """
        if math.isfinite(norm) and norm >= 0:
            return
        here = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
        raise UserError(
            f"step {self.step + 1}: the gradient is not finite (losses on this rank: {here}); lower train.lr, raise"
            f" train.warmup_steps, or look at the labels. The last checkpoint is from before"
        )

    def _levels(self, batch: dict) -> list[Tensor]:
        """What the frozen encoder makes of a batch's images, or the cached features that stand in their place."""
        device = self.ranks.device
        if "image" in batch:
            return self.model.encoder(batch["image"].to(device, non_blocking=True))
        return [level.to(device, non_blocking=True) for level in batch["features"]]

    def losses(self, output: Output, batch: dict) -> tuple[dict[str, Tensor], Auxiliary]:
        """Each task's losses, the decoder's own, and their weighted `total`."""
        losses, whole_T = self._task_losses(output, batch)
        total = sum(self.weighing.terms(whole_T))
        auxiliary = self.model.decoder.auxiliary(output)
        for name, (weight, loss) in auxiliary.losses.items():
            losses[name] = loss
            total = total + weight * loss
        return losses | {"total": total}, auxiliary

    def _task_losses(self, output: Output, batch: dict) -> tuple[dict[str, Tensor], list[Tensor]]:
        labels = {task.name: batch[task.name].to(self.ranks.device, non_blocking=True) for task in self.tasks}
        return task_losses(self.tasks, output, labels, self.config.train.loss_average)


def mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses of the whole global batch; a collective."""
    values = torch.stack([loss.detach().double() for loss in losses.values()])
    dist.all_reduce(values)
    return dict(zip(losses, (values / dist.get_world_size()).tolist()))


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value


def create_weighing(config: Config, samples: int, decoder: Decoder, accumulation: int = 1) -> Weighing:
    """The weighting method of a run over a training set of so many samples. UserError if the decoder does not fit."""
    train, tasks, shared = config.train, config.tasks, decoder.shared_parameters()
    around = Around(tuple(tasks), max(1, samples // train.batch_size), config.run.seed)
    method = create_weighting(train.weighting, around)
    if method.needs_gradients and not shared:
        raise UserError(
            f"train.weighting.kind={train.weighting.kind}: decoder.kind={config.decoder.kind} has no parameters that"
            " several tasks share; choose a method that weighs losses, uncertainty or dwa"
        )
    if getattr(train.weighting, "at", "") == "features":
        _check_features(config, accumulation)
    seen = {id(parameter) for parameter in shared}
    others = [p for p in decoder.parameters() if p.requires_grad and id(p) not in seen]
    return Weighing(method, [train.loss_weights.get(task, 1.0) for task in tasks], shared, others)


def _check_features(config: Config, accumulation: int) -> None:
    if not config.decoder.shares_feature:
        raise UserError(
            f"train.weighting.at=features: decoder.kind={config.decoder.kind}, as it is set, has no one feature that"
            " all tasks read; set it to parameters"
        )
    if accumulation > 1:
        raise UserError(
            f"train.weighting.at=features: a step of {accumulation} micro-batches a rank never has the whole batch's"
            " feature; raise train.micro_batch_size, use more ranks, or set it to parameters"
        )
