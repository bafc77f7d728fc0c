"""Real training steps of a configuration, timed by stage, on the ranks that are there."""

from __future__ import annotations

import resource
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import repeat
from typing import Any, Callable, Iterator

import torch

from fgmoe_dist.config import Config, check_world
from fgmoe_dist.data.augment import empty_labels
from fgmoe_dist.model import create_model
from fgmoe_dist.planning.times import STAGES
from fgmoe_dist.planning.trace import AnyDataset
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.training.engines.deepspeed import create_engine, prepare
from fgmoe_dist.training.trainer import Trainer

WARM_STEPS = 2


def measure_step(ranks: Ranks, config: Config, steps: int, synthetic: bool) -> dict[str, Any]:
    """Median seconds of a step and of its stages on this rank, all ranks stepping together, and its peak memory."""
    trainer = SyntheticTrainer(config, ranks) if synthetic else Trainer(config, ranks)
    clock = StageClock(trainer)
    totals, stages = [], defaultdict(list)
    for step in range(WARM_STEPS + steps):
        clock.seconds.clear()
        report = trainer.train_step()
        if step < WARM_STEPS:
            continue
        totals.append(report.seconds)
        seconds = {**clock.seconds, "data": report.wait_seconds}
        seconds["forward"] -= seconds.get("encoder", 0.0)  # it runs inside
        for stage in STAGES:
            stages[stage].append(seconds.get(stage, 0.0))
    return {
        "seconds": statistics.median(totals),
        "stages": {stage: statistics.median(values) for stage, values in stages.items()},
        "memory_bytes": _peak_bytes(ranks.device),
    }


class SyntheticTrainer(Trainer):
    """A trainer of random images and labels, over and over one micro-batch: no data set, no weights to download."""

    def __init__(self, config: Config, ranks: Ranks):
        check_world(config, ranks.world)
        config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": "none"})})
        self.config, self.ranks, self.step = config, ranks, 0
        prepare(config.parallel.ep_size)
        self.model = create_model(config, AnyDataset(config)).to(ranks.device)
        self.engine = create_engine(self.model, config)
        self._batches = repeat(_random_batch(config))


def _random_batch(config: Config) -> dict[str, Any]:
    images, size_hw = config.train.micro_batch_size, tuple(config.data.image_size)
    batch: dict[str, Any] = {"image": torch.randn(images, 3, *size_hw)}
    for task in config.tasks:
        label = empty_labels(task, images, size_hw)
        batch[task] = torch.rand_like(label) + 0.5 if label.is_floating_point() else torch.randint_like(label, 2)
    return batch


class StageClock:
    """Adds up the seconds a trainer spends in each stage of a step."""

    def __init__(self, trainer: Trainer):
        self.seconds: dict[str, float] = defaultdict(float)
        self.cuda = trainer.ranks.device.type == "cuda"
        for owner, method, stage in (
            (trainer.engine, "forward", "forward"),
            (trainer, "losses", "forward"),
            (trainer.engine, "backward", "backward"),
            (trainer.engine, "step", "update"),
            (trainer.model.encoder, "forward", "encoder"),
        ):
            setattr(owner, method, self._timed(getattr(owner, method), stage))

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args, **kwargs):
            with self._running(stage):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def _running(self, stage: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[stage] += self._now() - start

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
