"""The bootstrap against a closed form, and against scoring every draw image by image."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from fgmoe_dist.metrics.bootstrap import draw_images, interval, pooled_scores
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.depth import DepthMeter
from fgmoe_dist.metrics.iou import IoUMeter
from fgmoe_dist.metrics.normals import NormalsMeter
from fgmoe_dist.metrics.saliency import SaliencyMeter
from fgmoe_dist.metrics.scalar import ScalarMeter

SHAPE = (14, 17)


def shades(rng):
    return rng.integers(0, 256, SHAPE).astype(np.uint8)


def classes(rng):
    return rng.integers(0, 3, SHAPE).astype(np.uint8)


def metres(rng):
    return rng.uniform(0.5, 9, SHAPE).astype(np.float32)


def vectors(rng):
    return rng.normal(size=(*SHAPE, 3)).astype(np.float32)


def binary(rng):
    return (rng.random(SHAPE) < 0.2).astype(np.uint8)


METERS = {
    "semseg": (IoUMeter(3, ["a", "b", "c"]), classes, classes),
    "depth": (DepthMeter(), metres, metres),
    "normals": (NormalsMeter(), vectors, vectors),
    "sal": (SaliencyMeter(), shades, binary),
    "boundary": (BoundaryMeter(0.02, "boundary"), shades, binary),
}


@pytest.mark.parametrize("name", list(METERS))
def test_a_draw_scores_as_its_images_scored_one_after_the_other(name):
    meter, predict, label = METERS[name]
    images = []
    for n in range(6):
        rng = np.random.default_rng(n)
        images.append((predict(rng), {"id": str(n), meter.label: label(rng)}))
    rows = []
    for prediction, sample in images:
        one = meter.empty()
        one.update(prediction, sample)
        rows.append(one.state())
    times_DN = draw_images(6, draws=9, seed=3)
    assert (times_DN.sum(1) == 6).all() and len(np.unique(times_DN, axis=0)) > 1
    found = pooled_scores(meter, csr_array(np.stack(rows)), times_DN)
    for d, times_N in enumerate(times_DN.astype(int)):
        brute = meter.empty()
        for (prediction, sample), times in zip(images, times_N):
            for _ in range(times):
                brute.update(prediction, sample)
        for metric, value in brute.compute().items():
            assert found[metric][d] == pytest.approx(value, rel=1e-12), metric


def test_the_interval_of_a_mean_is_that_of_the_closed_form():
    """Of images of one pixel each mae is a mean, whose bootstrap has the variance s^2 / N (Efron 1993, section 5.2)."""
    errors_N = np.random.default_rng(0).exponential(2.0, 400)
    rows_NS = csr_array(np.stack([[1.0, e**2, e, 0, 0] for e in errors_N]))
    draws_D = pooled_scores(ScalarMeter("heat", "mae"), rows_NS, draw_images(400, draws=4000))["mae"]
    deviation = errors_N.std() / 400**0.5
    assert draws_D.std() == pytest.approx(deviation, rel=0.04)  # of 4000 draws it is known to 1.1 %
    value, low, high = interval(errors_N.mean(), draws_D)
    assert low == pytest.approx(value - 1.96 * deviation, abs=0.2 * deviation)
    assert high == pytest.approx(value + 1.96 * deviation, abs=0.2 * deviation)


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(1)
    hard_N, noise_N = rng.exponential(5.0, 300), rng.normal(0.1, 0.02, 300)
    meter, times_DN = ScalarMeter("heat", "mae"), draw_images(300)

    def scores(errors_N):
        return pooled_scores(meter, csr_array(np.stack([[1.0, e**2, e, 0, 0] for e in errors_N])), times_DN)["mae"]

    paired = interval(noise_N.mean(), scores(hard_N + noise_N) - scores(hard_N))
    assert paired.is_clear and paired.high - paired.low == pytest.approx(2 * 1.96 * 0.02 / 300**0.5, rel=0.15)
    same = interval(0.0, scores(hard_N) - scores(hard_N))
    assert tuple(same) == (0, 0, 0) and not same.is_clear


def test_draws_without_a_number_say_nothing():
    assert interval(1.0, np.array([np.nan, 1.0, 1.0, np.nan])) == (1.0, 1.0, 1.0)
    assert not interval(1.0, np.array([np.nan])).is_clear
