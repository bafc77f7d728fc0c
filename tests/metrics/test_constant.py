"""Each baseline against its meter fed with constant predictions."""

import math

import numpy as np
import pytest

from fgmoe_dist.metrics.boundary.constant import BoundaryConstant
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.depth import DepthConstant, DepthMeter
from fgmoe_dist.metrics.iou import IoUConstant, IoUMeter
from fgmoe_dist.metrics.normals import NormalsConstant, NormalsMeter
from fgmoe_dist.metrics.saliency import SaliencyConstant, SaliencyMeter

METERS = {
    "semseg": lambda: IoUMeter(4, ["a", "b", "c", "d"], task="semseg"),
    "human_parts": lambda: IoUMeter(2, ["background", "head"], task="human_parts"),
    "depth": DepthMeter,
    "normals": NormalsMeter,
    "sal": SaliencyMeter,
    "boundary": lambda: BoundaryMeter(0.03),
}
BASELINES = {
    "semseg": IoUConstant,
    "human_parts": IoUConstant,
    "depth": DepthConstant,
    "normals": NormalsConstant,
    "sal": SaliencyConstant,
    "boundary": BoundaryConstant,
}


def fresh(label):
    return BASELINES[label](METERS[label]())


def samples(label, seed=0, count=4):
    rng = np.random.default_rng(seed)
    for index in range(count):
        shape = (24, 30 + index % 2)
        values = {
            "semseg": lambda s=shape: rng.choice([0, 1, 2, 255], s, p=[0.2, 0.5, 0.1, 0.2]).astype(np.uint8),
            "human_parts": lambda s=shape: rng.choice([0, 1, 255], s, p=[0.2, 0.5, 0.3]).astype(np.uint8),
            "depth": lambda s=shape: np.where(rng.random(s) < 0.1, 0, rng.gamma(4, 0.7, s)).astype(np.float32),
            "normals": lambda s=shape: normals(rng, s),
            "sal": lambda s=shape: rng.choice([0, 1, 255], s, p=[0.7, 0.2, 0.1]).astype(np.uint8),
            "boundary": lambda s=shape: (rng.random(s) < 0.1).astype(np.uint8),
        }
        yield {"id": str(index), label: values[label]()}
    yield {"id": "unlabelled"}


def normals(rng, shape):
    """Half of it floor, the rest anything; a tenth invalid."""
    vector = np.where(rng.random((*shape, 1)) < 0.5, [0.1, -1, 0.2], rng.normal(size=(*shape, 3)))
    vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
    vector[rng.random(shape) < 0.1] = np.nan
    return vector.astype(np.float32)


def scored(label, constant, dtype, channels=()):
    meter = METERS[label]()
    for sample in samples(label):
        shape = next((v.shape[:2] for k, v in sample.items() if k == label), (1, 1))
        meter.update(np.broadcast_to(np.asarray(constant, dtype), (*shape, *channels)), sample)
    return meter.compute()


def baseline(label):
    result = fresh(label)
    for sample in samples(label):
        result.update(sample)
    return result


@pytest.mark.parametrize("label, constants", [("semseg", range(4)), ("human_parts", range(2))])
def test_best_class(label, constants):
    every = [scored(label, c, np.uint8) for c in constants]
    assert baseline(label).compute() == pytest.approx(max(every, key=lambda s: s["mIoU"]))


def test_best_saliency():
    every = [scored("sal", c, np.uint8) for c in (0, 40, 128, 255)]
    assert baseline("sal").compute() == pytest.approx(every[-1])
    assert baseline("sal").compute()["maxF"] == pytest.approx(max(s["maxF"] for s in every))


def test_best_depth():
    values = np.concatenate([s["depth"][s["depth"] > 0] for s in samples("depth") if "depth" in s]).astype(float)
    expected = scored("depth", values.mean(), np.float32)
    found = baseline("depth").compute()
    assert found["rmse"] == pytest.approx(values.std())
    for metric in ("rmse", "log_rmse", "sq_rel"):
        assert found[metric] == pytest.approx(expected[metric], rel=1e-6)
    assert found["abs_rel"] == pytest.approx(expected["abs_rel"], rel=1e-3)
    for metric in ("delta1", "delta2", "delta3"):
        assert found[metric] == pytest.approx(expected[metric], abs=0.5)


def test_best_normal():
    found = baseline("normals")
    constant = found._constant()
    expected = scored("normals", constant, np.float32, (3,))
    assert found.compute()["mean"] == pytest.approx(expected["mean"], abs=0.05)
    assert found.compute()["median"] == pytest.approx(expected["median"], abs=1.0)
    rng = np.random.default_rng(1)
    nearby = constant + 0.1 * rng.normal(size=(20, 3))
    for other in [*nearby, *rng.normal(size=(20, 3))]:
        assert expected["mean"] <= scored("normals", other, np.float32, (3,))["mean"] + 0.02


def test_best_boundary_is_the_meter_on_a_full_map():
    every = [scored("boundary", c, np.uint8) for c in (0, 60, 200, 255)]
    assert baseline("boundary").compute() == pytest.approx(every[-1])
    assert all(every[-1]["odsF"] >= s["odsF"] for s in every)
    assert every[-1]["odsF"] > 0


@pytest.mark.parametrize("label", METERS)
def test_merging_parts_is_the_whole(label):
    whole, left, right = baseline(label), fresh(label), fresh(label)
    for index, sample in enumerate(samples(label)):
        (left, right)[index % 2].update(sample)
    left.merge(right.state())
    assert left.compute() == pytest.approx(whole.compute())


@pytest.mark.parametrize("label", METERS)
def test_nothing_seen_is_nan(label):
    empty = fresh(label)
    empty.update({"id": "a"})
    assert all(math.isnan(value) for value in empty.compute().values())
