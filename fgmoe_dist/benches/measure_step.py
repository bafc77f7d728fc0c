"""Real training steps of a configuration, timed by stage, on the ranks that are there."""

from __future__ import annotations

import resource
import statistics
from collections import defaultdict
from contextlib import contextmanager
from typing import Any, Iterator

import torch

from fgmoe_dist.benches.timing import clock
from fgmoe_dist.config import Config
from fgmoe_dist.planning.times import STAGES
from fgmoe_dist.planning.trace import AnyDataset
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.training.batches import RandomSamples
from fgmoe_dist.training.trainer import Trainer

WARM_STEPS = 2


def measure_step(ranks: Ranks, config: Config, steps: int, synthetic: bool) -> dict[str, Any]:
    """Median seconds of a step and of its stages on this rank, all ranks stepping together, and its peak memory."""
    trainer = _synthetic_trainer(config, ranks) if synthetic else Trainer(config, ranks)
    stages = StageClock(ranks.device)
    trainer.stage = stages.running
    totals, found = [], defaultdict(list)
    for step in range(WARM_STEPS + steps):
        stages.seconds.clear()
        report = trainer.train_step()
        if step < WARM_STEPS:
            continue
        totals.append(report.seconds)
        for stage in STAGES:
            found[stage].append(stages.seconds[stage])
    return {
        "seconds": statistics.median(totals),
        "stages": {stage: statistics.median(values) for stage, values in found.items()},
        "memory_bytes": _peak_bytes(ranks.device),
    }


def _synthetic_trainer(config: Config, ranks: Ranks) -> Trainer:
    """A trainer of random images and labels, over and over one micro-batch: no data set, no weights to download."""
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": "none"})})
    return Trainer(config, ranks, RandomSamples(AnyDataset(config)))


class StageClock:
    """Adds up the seconds that a trainer spends in each stage of a step."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self.device = device

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        start = clock(self.device)
        yield
        self.seconds[stage] += clock(self.device) - start


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        context = total - free - torch.cuda.memory_reserved(device)  # the driver's and the libraries' own
        return context + torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
