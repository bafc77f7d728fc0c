"""Counting in worker processes against counting here."""

import numpy as np
import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.scorer import Scorer
from fgmoe_dist.tasks import baselines
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.edge import Edge
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.semseg import Semseg

SHAPE = (12, 15)


def images(count):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        labels = {
            "semseg": rng.integers(0, 3, SHAPE).astype(np.uint8),
            "depth": rng.uniform(0.1, 9, SHAPE).astype(np.float32),
            "normals": rng.normal(size=(*SHAPE, 3)).astype(np.float32),
            "boundary": (rng.random(SHAPE) < 0.2).astype(np.uint8),
        }
        predictions = {
            "semseg": rng.integers(0, 3, SHAPE).astype(np.uint8),
            "depth": rng.uniform(0.1, 9, SHAPE).astype(np.float32),
            "normals": rng.normal(size=(*SHAPE, 3)).astype(np.float32),
            "edge": rng.integers(0, 256, SHAPE).astype(np.uint8),
        }
        yield predictions, {"id": str(seed), "image": np.zeros((*SHAPE, 3), np.uint8), **labels}


TASKS = [Semseg("semseg", ["a", "b", "c"]), Depth(), Normals(), Edge("edge", 0.05)]


def fresh():
    return {task.name: task.meter() for task in TASKS}, baselines(TASKS)


def counted(workers, count=11):
    meters, constants = fresh()
    with Scorer(meters, constants, workers) as scorer:
        for predictions, sample in images(count):
            scorer.update(sample, predictions)
    return [one.state() for one in (*meters.values(), *constants.values())]


def test_any_number_of_workers_counts_alike_to_the_last_bit():
    meters, constants = fresh()
    for predictions, sample in images(11):
        for name, meter in meters.items():
            meter.update(predictions[name], sample)
            constants[name].update(sample)
    for other in (counted(0), counted(1), counted(2)):
        for one, state in zip((*meters.values(), *constants.values()), other):
            np.testing.assert_array_equal(one.state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_comes_back_and_leaves_nothing_running(workers):
    meters, constants = fresh()
    scorer = Scorer(meters, constants, workers)
    with pytest.raises(UserError, match="depth for image 0 is 11 x 15"), scorer:
        for predictions, sample in images(20):
            scorer.update(sample, {**predictions, "depth": predictions["depth"][1:]})
    if workers:
        with pytest.raises(RuntimeError, match="after shutdown"):
            scorer._pool.submit(print)
