"""Sets of predictions in another encoding are told apart from bad models."""

import itertools

import numpy as np
import pytest

from fgmoe_dist.metrics.encodings import ByteWatch, ClassWatch, DirectionWatch, RangeWatch, RatioWatch

HW = (24, 32)


def rng(seed=0):
    return np.random.default_rng(seed)


def reason(watch, pairs):
    """What a watch says that was merged from one watch an image."""
    for prediction, label in pairs:
        one = watch.empty()
        one.update(prediction, label)
        watch.merge(one.state())
    return watch.reason()


def normals(seed, tilt=0.7):
    """Surfaces that mostly face the camera."""
    vector_HWC = rng(seed).normal(size=(*HW, 3)) * tilt + (0, 0, 1)
    vector_HWC /= np.linalg.norm(vector_HWC, axis=-1, keepdims=True)
    vector_HWC[0] = np.nan
    return vector_HWC.astype(np.float32)


def noisy(vector_HWC, seed, noise=0.3):
    found_HWC = np.nan_to_num(vector_HWC, nan=0.577) + noise * rng(seed).normal(size=vector_HWC.shape)
    return (found_HWC / np.linalg.norm(found_HWC, axis=-1, keepdims=True)).astype(np.float32)


def test_bytes_of_0_and_1_in_the_whole_set():
    label_HW = rng().integers(0, 2, HW).astype(np.uint8)
    black_HW = np.zeros_like(label_HW)
    assert "uint8(255 * probability)" in reason(ByteWatch(), [(label_HW, label_HW), (black_HW, label_HW)])
    for others in ([black_HW], [255 * label_HW], [label_HW, 255 * label_HW], [label_HW, label_HW * 2]):
        assert reason(ByteWatch(), [(other_HW, label_HW) for other_HW in others]) is None


@pytest.mark.parametrize("classes", [3, 40])
def test_class_ids_one_off(classes):
    labels = [rng(n).integers(0, classes - 1, HW).astype(np.uint8) for n in range(3)]
    for label_HW in labels:
        label_HW[0] = 255
    clean = [np.where(label_HW == 255, 0, label_HW).astype(np.uint8) for label_HW in labels]
    assert reason(ClassWatch(classes, 255), zip(clean, labels)) is None
    above = [found_HW + np.uint8(1) for found_HW in clean]
    assert "one above the labels' class ids, which count from 0: subtract 1" in reason(
        ClassWatch(classes, 255), zip(above, labels)
    )
    higher = [np.where(label_HW == 255, 255, label_HW + 1).astype(np.uint8) for label_HW in labels]
    assert "add 1" in reason(ClassWatch(classes, 255), zip(clean, higher))
    for bad in (lambda n: rng(9 + n).integers(0, classes, HW), lambda n: np.full(HW, classes - 1)):
        assert reason(ClassWatch(classes, 255), ((bad(n).astype(np.uint8), labels[n]) for n in range(3))) is None


def test_two_classes_the_wrong_way_round_are_a_bad_model():
    label_HW = rng().integers(0, 2, HW).astype(np.uint8)
    assert reason(ClassWatch(2, 255), [(1 - label_HW, label_HW)]) is None


def test_vectors_left_in_0_to_1():
    pairs = [((normals(n) + 1) / 2, normals(n)) for n in range(3)]
    pairs = [(np.nan_to_num(found_HWC, nan=0.5), label_HWC) for found_HWC, label_HWC in pairs]
    assert "left in 0 .. 1? Save 2x - 1" in reason(DirectionWatch(), pairs)


def test_a_constant_that_faces_the_camera_is_a_bad_model():
    facing_HWC = np.broadcast_to(np.float32([0, 0, 1]), (*HW, 3))
    assert reason(DirectionWatch(), [(facing_HWC, normals(n)) for n in range(3)]) is None


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=3))
def test_axes_in_another_order_are_named(order, signs):
    """The channels of the file are the label's, in that order and with those signs."""
    labels = [normals(n, tilt=1.0) for n in range(3)]
    pairs = [(noisy(label_HWC, n)[..., order] * np.float32(signs), label_HWC) for n, label_HWC in enumerate(labels)]
    said = reason(DirectionWatch(), pairs)
    if order == (0, 1, 2) and signs == (1, 1, 1):
        assert said is None
        return
    names = [f"{'-' if sign < 0 else ''}{'xyz'[axis]}" for axis, sign in zip(order, signs)]
    assert f"[{', '.join(names)}]" in said and ("red and blue" in said) == (names == ["z", "y", "x"])


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 3.0])
def test_noise_is_a_bad_model_and_no_encoding(noise):
    assert reason(DirectionWatch(), [(noisy(normals(n), n, noise), normals(n)) for n in range(3)]) is None


def test_one_plane_tells_no_axes_apart():
    wall_HWC, floor_HWC = (np.broadcast_to(np.float32(n), (*HW, 3)) for n in ((0, 0, 1), (0, 1, 0)))
    assert reason(DirectionWatch(), [(floor_HWC, wall_HWC)]) is None


@pytest.mark.parametrize(("factor", "refused"), [
    (1, False), (0.1, True), (10, True), (1000, True), (0.001, True), (0.5, False), (3, False), (30, False),
])  # fmt: skip
def test_depth_in_another_unit(factor, refused):
    labels = [rng(n).uniform(0.5, 10, HW).astype(np.float32) for n in range(3)]
    for label_HW in labels:
        label_HW[0] = 0
    noise = [np.exp(0.2 * rng(9 + n).normal(size=HW)) for n in range(3)]
    said = reason(RatioWatch(), [(factor * d * e, d) for d, e in zip(labels, noise)])
    assert (said is not None) == refused
    if refused:
        assert f"are {factor:g} times the labels everywhere" in said
    constant_HW = np.full(HW, 50.0, np.float32)  # far off, but not alike everywhere
    assert reason(RatioWatch(), [(constant_HW, d) for d in labels]) is None


def test_colours_of_0_to_255_where_labels_go_to_1():
    label_HWC = rng().uniform(0, 1, (*HW, 3)).astype(np.float32)
    assert "range [0, 1]" in reason(RangeWatch(0, 1), [(255 * label_HWC, label_HWC)])
    assert reason(RangeWatch(0, 1), [(label_HWC + 0.4, label_HWC)]) is None


def test_watches_of_nothing_say_nothing():
    for watch in (ByteWatch(), ClassWatch(5, 255), DirectionWatch(), RangeWatch(0, 1), RatioWatch()):
        assert watch.reason() is None
