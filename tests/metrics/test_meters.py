"""Meters against hand-computed cases, naive per-pixel oracles and each other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.depth import DepthMeter
from fgmoe_dist.metrics.iou import IoUMeter
from fgmoe_dist.metrics.normals import NormalsMeter
from fgmoe_dist.metrics.saliency import SaliencyMeter

METERS = {
    "semseg": lambda: IoUMeter(3, ["wall", "floor", "bed"], task="semseg"),
    "depth": DepthMeter,
    "normals": NormalsMeter,
    "sal": SaliencyMeter,
    "edge": lambda: BoundaryMeter(0.05),
}


def random_pair(task, rng, shape=(9, 11)):
    """(prediction, sample) with some pixels ignored."""
    ignored = rng.random(shape) < 0.2
    if task == "semseg":
        prediction, label = rng.integers(0, 3, (2, *shape)).astype(np.uint8)
        label[ignored] = 255
    elif task == "depth":
        prediction = rng.uniform(-0.5, 9, shape).astype(np.float32)
        label = np.where(ignored, 0, rng.uniform(0.5, 90, shape)).astype(np.float32)
    elif task == "normals":
        prediction, label = rng.normal(size=(2, *shape, 3)).astype(np.float32)
        label /= np.linalg.norm(label, axis=-1, keepdims=True)
        label[ignored] = np.nan
    else:
        prediction = rng.integers(0, 256, shape).astype(np.uint8)
        label = (rng.random(shape) < 0.3).astype(np.uint8)
        if task == "sal":
            label[ignored] = 255
    return prediction, {"id": "0001", "boundary" if task == "edge" else task: label}


@pytest.mark.parametrize("task", METERS)
def test_nothing_seen_is_nan(task):
    meter = METERS[task]()
    meter.update(np.zeros((4, 4)), {"id": "0001"})  # a sample without the label is not even looked at
    assert all(math.isnan(value) for value in meter.compute().values())
    assert not meter.state().any()


@pytest.mark.parametrize("task", [t for t in METERS if t != "edge"])
def test_all_ignored_is_nan(task):
    prediction, sample = random_pair(task, np.random.default_rng(0))
    sample[task][...] = {"depth": 0, "normals": np.nan}.get(task, 255)
    meter = METERS[task]()
    meter.update(prediction, sample)
    assert all(math.isnan(value) for value in meter.compute().values())


@pytest.mark.parametrize("task", METERS)
@given(split=st.lists(st.integers(0, 2), min_size=4, max_size=4), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_merge_over_any_split_is_the_whole(task, split, seed):
    rng = np.random.default_rng(seed)
    pairs = [random_pair(task, rng) for _ in split]
    whole, parts, merged = METERS[task](), [METERS[task]() for _ in range(3)], METERS[task]()
    for pair, part in zip(pairs, split):
        whole.update(*pair)
        parts[part].update(*pair)
    for part in reversed(parts):
        merged.merge(part.state())
    assert merged.state().dtype == np.float64 and merged.state().ndim == 1
    assert_allclose(merged.state(), whole.state(), rtol=1e-13)
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)


def test_state_is_a_copy():
    meter = SaliencyMeter()
    meter.state()[:] = 7
    assert not meter.state().any()


# ---- wrong predictions ----


@pytest.mark.parametrize("task", METERS)
def test_wrong_size_names_the_image_the_sizes_and_the_cure(task):
    prediction, sample = random_pair(task, np.random.default_rng(0))
    with pytest.raises(UserError, match=rf"{task} for image 0001 is 9 x 10.*the label is 9 x 11.*native size"):
        METERS[task]().update(prediction[:, :-1], sample)


@pytest.mark.parametrize("task", METERS)
def test_wrong_type_is_refused(task):
    prediction, sample = random_pair(task, np.random.default_rng(0))
    with pytest.raises(UserError, match=f"{task} for image 0001 has type int32; save "):
        METERS[task]().update(prediction.astype(np.int32), sample)


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_a_single_nan_is_refused(task):
    prediction, sample = random_pair(task, np.random.default_rng(0))
    prediction.flat[5] = np.nan
    with pytest.raises(UserError, match=f"{task} for image 0001 has 1 values that are NaN"):
        METERS[task]().update(prediction, sample)


def test_a_class_out_of_range_is_refused():
    sample = {"id": "0001", "semseg": np.full((2, 2), 255, np.uint8)}
    with pytest.raises(UserError, match=r"semseg for image 0001 has class 3; save class ids 0..2"):
        METERS["semseg"]().update(np.full((2, 2), 3, np.uint8), sample)


def test_a_label_out_of_range_is_refused():
    with pytest.raises(UserError, match="label of semseg of image 0001 has class 7 of 3"):
        METERS["semseg"]().update(np.zeros((2, 2), np.uint8), {"id": "0001", "semseg": np.full((2, 2), 7, np.uint8)})


# ---- mIoU ----


def test_iou_by_hand():
    label = np.array([[0, 0, 1, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 2]], np.uint8)
    meter = METERS["semseg"]()
    meter.update(prediction, {"id": "a", "semseg": label})
    # wall 1 / 2, floor 1 / 2, bed absent: 0 in the headline
    assert meter.compute() == pytest.approx({"mIoU": 100 / 3, "mIoU_present": 50.0})
    details = meter.details()
    assert details["IoU/wall"] == 50 and math.isnan(details["IoU/bed"])
    assert_array_equal(meter.confusion, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])


def test_iou_pools_over_images_and_uses_its_own_label():
    meter = IoUMeter(2, ["background", "head"], task="human_parts")
    ones = np.ones((1, 3), np.uint8)
    meter.update(ones, {"id": "a", "human_parts": ones, "semseg": 0 * ones})
    meter.update(ones, {"id": "b", "human_parts": 0 * ones})
    # head 3 / 6 (a mean over images would give 50, 0), background 0 / 3
    assert meter.compute()["mIoU"] == pytest.approx(25)


def test_a_class_predicted_but_absent_is_not_present():
    meter = METERS["semseg"]()
    meter.update(np.array([[0, 2]], np.uint8), {"id": "a", "semseg": np.zeros((1, 2), np.uint8)})
    assert meter.compute() == pytest.approx({"mIoU": 50 / 3, "mIoU_present": 50.0})


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_iou_against_sets_of_pixels(seed):
    prediction, sample = random_pair("semseg", np.random.default_rng(seed))
    meter = METERS["semseg"]()
    meter.update(prediction, sample)
    label = sample["semseg"]
    seen = {(y, x) for y, x in np.ndindex(label.shape) if label[y, x] != 255}
    ious = []
    for k in range(3):
        truth, found = ({i for i in seen if array[i] == k} for array in (label, prediction))
        ious.append(len(truth & found) / len(truth | found))
    assert meter.compute()["mIoU"] == pytest.approx(100 * sum(ious) / 3)


# ---- depth ----


def test_depth_by_hand():
    label = np.array([[1.0, 2.0, 0.0, 80.0, 4.0]], np.float32)
    prediction = np.array([[1.0, 3.0, 9.0, 9.0, 2.0]], np.float32)
    meter = DepthMeter()
    meter.update(prediction, {"id": "a", "depth": label})
    assert meter.compute() == pytest.approx(
        {
            "rmse": math.sqrt((0 + 1 + 4) / 3),
            "log_rmse": math.sqrt((math.log(1.5) ** 2 + math.log(0.5) ** 2) / 3),
            "abs_rel": (0.5 + 0.5) / 3,
            "sq_rel": (1 / 2 + 4 / 4) / 3,
            "delta1": 100 / 3,
            "delta2": 200 / 3,  # 1.5 < 1.5625
            "delta3": 200 / 3,  # 2 > 1.953
        }
    )


def test_depth_pools_pixels_not_images():
    meter = DepthMeter()
    for error, pixels in ((3.0, 1), (0.0, 8)):
        label = np.full((1, pixels), 5, np.float32)
        meter.update(label + np.float32(error), {"id": "a", "depth": label})
    assert meter.compute()["rmse"] == pytest.approx(1.0)


def test_a_negative_depth_counts_as_1e_9():
    meter = DepthMeter()
    meter.update(np.array([[-3.0]], np.float32), {"id": "a", "depth": np.array([[1.0]], np.float32)})
    assert meter.compute()["rmse"] == pytest.approx(1.0)
    assert meter.compute()["log_rmse"] == pytest.approx(9 * math.log(10))


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_depth_against_a_loop_over_pixels(seed):
    meter, pixels, rng = DepthMeter(), [], np.random.default_rng(seed)
    for _ in range(2):
        prediction, sample = random_pair("depth", rng, (5, 7))
        meter.update(prediction, sample)
        pixels += list(zip(prediction.ravel().tolist(), sample["depth"].ravel().tolist()))
    pixels = [(max(p, 1e-9), g) for p, g in pixels if 0 < g < 80]

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    expected = {
        "rmse": mean((p - g) ** 2 for p, g in pixels) ** 0.5,
        "log_rmse": mean(math.log(p / g) ** 2 for p, g in pixels) ** 0.5,
        "abs_rel": mean(abs(p - g) / g for p, g in pixels),
        "sq_rel": mean((p - g) ** 2 / g for p, g in pixels),
        **{f"delta{k}": 100 * mean(max(p / g, g / p) < 1.25**k for p, g in pixels) for k in (1, 2, 3)},
    }
    assert meter.compute() == pytest.approx(expected)


def test_depth_ties_and_limits():
    # a ratio of exactly 1.25 is not below it; a truth of exactly 80 m, or none at all, is not scored
    label = np.array([[4.0, 80.0, np.nextafter(np.float32(80), np.float32(0)), 0.0]], np.float32)
    prediction = np.array([[5.0, 1.0, 80.0, 1.0]], np.float32)
    meter = DepthMeter()
    meter.update(prediction, {"id": "a", "depth": label})
    assert meter.compute()["delta1"] == 50 and meter.state()[0] == 2


# ---- normals ----


def turned(degrees):
    """Unit vectors at these angles from the z axis, `[1, W, 3]`."""
    angle = np.radians(np.atleast_1d(degrees))
    return np.stack([np.sin(angle), 0 * angle, np.cos(angle)], -1)[None].astype(np.float32)


def test_normals_by_hand():
    angles = [0.0, 10.0, 20.0, 29.0, 170.0]
    meter = NormalsMeter()
    # neither side need be of length one
    meter.update(7 * turned(angles), {"id": "a", "normals": 3 * turned(np.zeros(5))})
    scores = meter.compute()
    assert scores["mean"] == pytest.approx(np.mean(angles), abs=1e-4)
    assert scores["median"] == pytest.approx(20, abs=0.0051)
    assert [scores[f"within_{limit}"] for limit in ("11.25", "22.5", "30")] == pytest.approx([40, 60, 80])


def test_an_even_median_is_the_mean_of_the_middle_two():
    meter = NormalsMeter()
    meter.update(turned([0, 90]), {"id": "a", "normals": turned([0, 0])})
    assert meter.compute()["median"] == pytest.approx(45, abs=0.0051)


def test_a_threshold_of_normals_is_not_reached_by_a_tie():
    meter = NormalsMeter()
    meter.add_angles(np.array([11.25, 22.5, 30.0]), np.ones(3))
    assert [meter.compute()[f"within_{limit}"] for limit in ("11.25", "22.5", "30")] == pytest.approx(
        [0, 100 / 3, 200 / 3]
    )


def test_the_cumulative_curve_of_normals():
    meter = NormalsMeter()
    meter.add_angles(np.array([10.0, 20.0, 20.0, 100.0]), np.ones(4))
    degrees, share = meter.cumulative()
    assert np.interp([5, 15, 25, 180], degrees, share) == pytest.approx([0, 0.25, 0.75, 1])


def test_opposite_and_zero_normals():
    meter = NormalsMeter()
    meter.update(turned([180]), {"id": "a", "normals": turned([0])})
    assert meter.compute()["mean"] == pytest.approx(180)
    meter.update(turned([0]) * 0, {"id": "b", "normals": turned([0])})
    assert meter.compute()["mean"] == pytest.approx(135)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_normals_against_arccos(seed):
    prediction, sample = random_pair("normals", np.random.default_rng(seed))
    meter = NormalsMeter()
    meter.update(prediction, sample)
    p, g = (v.reshape(-1, 3).astype(np.float64) for v in (prediction, sample["normals"]))
    p, g = p[~np.isnan(g[:, 0])], g[~np.isnan(g[:, 0])]
    cosine = (p * g).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(g, axis=1)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    scores = meter.compute()
    assert scores["mean"] == pytest.approx(angle.mean(), abs=1e-5)
    assert scores["median"] == pytest.approx(np.median(angle), abs=0.0051)
    assert scores["within_30"] == pytest.approx(100 * (angle < 30).mean())


# ---- saliency ----


def naive_max_f(probability, truth, thresholds):
    """Best F over the thresholds, from precision and recall as written in papers."""
    best = 0.0
    for threshold in thresholds:
        found = probability >= threshold
        hit = (found & truth).sum()
        if hit:
            precision, recall = hit / found.sum(), hit / truth.sum()
            best = max(best, 1.3 * precision * recall / (0.3 * precision + recall))
    return 100 * best


def test_saliency_by_hand():
    meter = SaliencyMeter()
    meter.update(
        np.array([[255, 128, 51, 0, 9]], np.uint8), {"id": "a", "sal": np.array([[1, 0, 1, 0, 255]], np.uint8)}
    )
    # threshold 0.2 includes 51: P = 2/3, R = 1; above 0.55: P = 1, R = 1/2
    scores = meter.compute()
    assert scores["maxF"] == pytest.approx(100 * max(1.3 * 2 / 3 / (0.3 * 2 / 3 + 1), 1.3 * 0.5 / (0.3 + 0.5)))
    assert scores["mae"] == pytest.approx((0 + 128 / 255 + 204 / 255 + 0) / 4)
    # after the sigmoid the four values are 0.731, 0.623, 0.550, 0.5
    assert scores["maxF_legacy"] == pytest.approx(scores["maxF"])


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_saliency_against_papers_and_peers(seed):
    meter, probabilities, truths = SaliencyMeter(), [], []
    rng = np.random.default_rng(seed)
    for _ in range(3):
        prediction, sample = random_pair("sal", rng)
        meter.update(prediction, sample)
        valid = sample["sal"] != 255
        probabilities.append(prediction[valid].astype(np.float32) / np.float32(255))
        truths.append(sample["sal"][valid] == 1)
    probability, truth = np.concatenate(probabilities), np.concatenate(truths)
    thresholds = (np.arange(1, 20) * 0.05).astype(np.float32)
    scores = meter.compute()
    assert scores["maxF"] == pytest.approx(naive_max_f(probability, truth, thresholds))
    squashed = 1 / (1 + np.exp(-probability))
    assert scores["maxF_legacy"] == pytest.approx(naive_max_f(squashed, truth, thresholds))


def test_saliency_with_no_object_is_zero_not_a_crash():
    meter = SaliencyMeter()
    meter.update(np.full((2, 2), 255, np.uint8), {"id": "a", "sal": np.zeros((2, 2), np.uint8)})
    assert meter.compute() == pytest.approx({"maxF": 0, "maxF_legacy": 0, "mae": 1})


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_saliency_curve_and_details_against_counting(seed):
    prediction, sample = random_pair("sal", np.random.default_rng(seed))
    meter = SaliencyMeter()
    meter.update(prediction, sample)
    valid = sample["sal"] != 255
    p, g = prediction[valid], sample["sal"][valid] == 1
    curve, details = meter.curve(), meter.details()
    for value in (0, 1, 128, 255):
        found = p >= value
        assert curve["recall"][value] == pytest.approx((found & g).sum() / max(g.sum(), 1))
        assert curve["precision"][value] == pytest.approx((found & g).sum() / max(found.sum(), 1))
    a, b = details["precision"], details["recall"]
    assert 1.3 * a * b / (0.3 * a + b) == pytest.approx(meter.compute()["maxF"])
    found = p / 255 >= details["threshold"] - 1e-9
    assert b == pytest.approx(100 * (found & g).sum() / g.sum())


# ---- one pixel ----


ONE = {
    "semseg": (np.uint8([[1]]), np.uint8([[1]]), {"mIoU": 100 / 3, "mIoU_present": 100}),
    "depth": (
        np.float32([[3]]),
        np.float32([[2]]),
        {"rmse": 1, "abs_rel": 0.5, "sq_rel": 0.5, "delta1": 0, "delta2": 100},
    ),
    "normals": (np.float32([[[0, 0, 1]]]), np.float32([[[0, 1, 0]]]), {"mean": 90, "median": 90.005, "within_30": 0}),
    "sal": (np.uint8([[204]]), np.uint8([[1]]), {"maxF": 100, "maxF_legacy": 100, "mae": 0.2}),
    # the border fades to nothing, so an image of one pixel has no predicted boundary
    "edge": (np.uint8([[255]]), np.uint8([[1]]), {"odsF": 0, "ois": 0, "ap": 0}),
}


@pytest.mark.parametrize("task", ONE)
def test_one_pixel(task):
    prediction, label, expected = ONE[task]
    meter = METERS[task]()
    meter.update(prediction, {"id": "a", meter.label: label})
    scores = meter.compute()
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
