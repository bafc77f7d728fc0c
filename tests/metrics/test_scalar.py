"""Numbers and vectors of any unit: meters by hand and against loops, baselines against their meters."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.scalar import ScalarConstant, ScalarMeter
from fgmoe_dist.metrics.vectors import VectorConstant, VectorMeter

CASES = {
    "heat": (lambda: ScalarMeter("heat"), ScalarConstant, ()),
    "albedo": (lambda: VectorMeter("albedo", 4), VectorConstant, (4,)),
}


def images(name, seed, count=3):
    rng, channels = np.random.default_rng(seed), CASES[name][2]
    for index in range(count):
        label = rng.normal(5, 3, (7, 8 + index, *channels)).astype(np.float32)
        label[rng.random(label.shape) < 0.1] = np.nan
        yield rng.normal(5, 3, label.shape).astype(np.float32), {"id": str(index), name: label}
    yield np.zeros(0), {"id": "unlabelled"}


def test_by_hand():
    meter = ScalarMeter("heat", "abs_rel")
    meter.update(np.float32([[1, -2, 5, 9]]), {"id": "a", "heat": np.float32([[2, -4, 0, np.nan]])})
    assert meter.compute() == pytest.approx({"abs_rel": 0.5, "rmse": math.sqrt((1 + 4 + 25) / 3), "mae": 8 / 3})
    assert next(iter(meter.compute())) == meter.image_metric == "abs_rel"


@pytest.mark.parametrize("name", CASES)
@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_against_a_loop(name, seed):
    meter, errors, relative = CASES[name][0](), [], []
    for prediction, sample in images(name, seed):
        meter.update(prediction, sample)
        if name in sample:
            pairs = zip(prediction.reshape(-1, *CASES[name][2]), sample[name].reshape(-1, *CASES[name][2]))
            for p, g in pairs:
                if not np.isnan(g).any():
                    errors += list(np.atleast_1d(p.astype(float) - g))
                    relative += list(np.atleast_1d(abs(p.astype(float) - g) / abs(g)))
    found = meter.compute()
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors)))
    assert found["mae"] == pytest.approx(sum(map(abs, errors)) / len(errors))
    if name == "heat":
        assert found["abs_rel"] == pytest.approx(sum(relative) / len(relative))


@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_the_best_constant(name):
    create, baseline, _ = CASES[name]
    parts = [baseline(create()) for _ in range(2)]
    for index, (_, sample) in enumerate(images(name, 1)):
        parts[index % 2].update(sample)
    parts[0].merge(parts[1].state())
    labels = [sample[name] for _, sample in images(name, 1) if name in sample]
    valid = [label[~np.isnan(label).reshape(*label.shape[:2], -1).any(-1)] for label in labels]
    mean = np.concatenate(valid).astype(float).mean(0)

    def rmse(constant):
        meter = create()
        for label in labels:
            meter.update(np.broadcast_to(np.float32(constant), label.shape), {"id": "a", name: label})
        return meter.compute()["rmse"]

    assert parts[0].compute() == {"rmse": pytest.approx(rmse(mean))}
    assert all(rmse(mean + shift) > rmse(mean) for shift in (-0.1, 0.1))


@pytest.mark.parametrize("name", CASES)
def test_merging_is_having_seen_it_all_and_nothing_is_nan(name):
    create, baseline, channels = CASES[name]
    whole, parts = create(), [create(), create()]
    for index, image in enumerate(images(name, 2)):
        whole.update(*image)
        parts[index % 2].update(*image)
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == pytest.approx(whole.compute())
    unlabelled = np.full((2, 2, *channels), np.nan, np.float32)
    empty, constant = create(), baseline(create())
    empty.update(np.zeros_like(unlabelled), {"id": "a", name: unlabelled})
    constant.update({"id": "a", name: unlabelled})
    assert all(math.isnan(value) for value in (*empty.compute().values(), *constant.compute().values()))


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_prediction_is_named(name):
    meter = CASES[name][0]()
    label = np.zeros((4, 5, *CASES[name][2]), np.float32)
    faults = {"is 3 x 5": label[1:], "has type int64; save float32": label.astype(int), "has .* NaN": label + np.nan}
    for message, bad in faults.items():
        with pytest.raises(UserError, match=f"prediction of {name} for image a {message}"):
            meter.update(bad, {"id": "a", name: label})
