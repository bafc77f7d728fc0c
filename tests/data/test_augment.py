"""Augmentation: alignment to a pixel, and the laws each label obeys, whatever the chance."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.data import augment, codec
from fgmoe_dist.data.augment import EvalTransform, TrainTransform, Window, distort, unpad
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels.vectors import mirror_unit
from fgmoe_dist.tasks.labelling import KNOWN_KEYS

TASKS = ("semseg", "human_parts", "sal", "normals", "depth", "edge")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))


def _sample(seed=0, hw=(20, 30)):
    rng = np.random.default_rng(seed)
    maps = {key: rng.choice([0, 1, 255], hw).astype(np.uint8) for key in ("sal", "edge")}
    return {
        "id": "a",
        "image": rng.integers(0, 256, (*hw, 3), dtype=np.uint8),
        "semseg": rng.choice([*range(20), 255], hw).astype(np.uint8),
        "human_parts": rng.choice([*range(7), 255], hw).astype(np.uint8),
        "normals": rng.integers(0, 256, (*hw, 3), dtype=np.uint8),
        "depth": (rng.uniform(1, 10, hw) * rng.integers(0, 2, hw)).astype(np.float32),
        **maps,
    }


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, hw=SIDES, size=SIDES)
def test_laws_of_the_labels(seed, hw, size):
    sample = _sample(seed, hw)
    out = TrainTransform(size, tasks=TASKS, **PLAIN)(sample, np.random.default_rng(seed))
    assert out["id"] == "a" and out["image"].shape == (3, *size) and out["image"].dtype == torch.float32
    assert out["image"].min() >= 0 and out["image"].max() <= 1
    for task in ("semseg", "human_parts", "sal", "edge"):
        assert out[task].shape == size and out[task].dtype == torch.int64
        assert set(out[task].unique().tolist()) <= {*np.unique(sample[task]).tolist(), 255}  # no class is made up
    length = out["normals"].norm(dim=0)
    assert out["normals"].shape == (3, *size)
    assert torch.all(length.isnan() | ((length - 1).abs() < 1e-5))
    assert out["depth"].dtype == torch.float32 and out["depth"].shape == size


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, hw=SIDES)
def test_depth_scales_inversely(seed, hw):
    sample = _sample(seed, hw)
    scale = np.random.default_rng(seed).uniform(0.5, 2)
    transform = TrainTransform((64, 64), tasks=("depth",), scale_range=(scale, scale), flip=False, **PLAIN)
    depth = transform(sample, np.random.default_rng(0))["depth"].numpy()
    scaled_height = max(1, math.floor(hw[0] * scale))
    values = sample["depth"] / np.float32(scaled_height / hw[0])
    assert set(depth[depth > 0].tolist()) <= set(values[values > 0].tolist())
    if scale >= 1:  # enlarging loses no pixel
        assert set(depth[depth > 0].tolist()) == set(values[values > 0].tolist())


def _flipped(key, array):
    height, width = array.shape[:2]
    return Window((height, width), (height, width), 0, 0, height, width, flip=True).stored(KNOWN_KEYS[key], array)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, hw=SIDES)
def test_flipping_twice_is_the_identity_for_every_task(seed, hw):
    sample = _sample(seed, hw)
    for task in TASKS:
        native = codec.native(task, sample[task])
        np.testing.assert_array_equal(_flipped(task, _flipped(task, native)), native)


def test_a_flip_mirrors_and_turns_the_x_of_normals():
    normals_HWC = np.array([[[1, 0, 0], [0, 0.6, 0.8], [0.6, 0, 0.8]]], np.float32)
    truth_HWC = np.array([[[-0.6, 0, 0.8], [0, 0.6, 0.8], [-1, 0, 0]]], np.float32)
    np.testing.assert_array_equal(_flipped("normals", normals_HWC), truth_HWC)
    window = Window((1, 3), (1, 3), 0, 0, 1, 3, flip=True)
    image_HWC = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    np.testing.assert_array_equal(window.linear(image_HWC), image_HWC[:, ::-1])


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_image_and_labels_stay_aligned_to_a_pixel(seed):
    """Image and label are the same stripes (across in red, down in green): where one steps, so does the other."""
    rng = np.random.default_rng(seed)
    across_HW = np.broadcast_to(rng.integers(0, 2, (6, 1), dtype=np.uint8).repeat(10, 0), (60, 70))
    down_HW = np.broadcast_to(rng.integers(0, 2, (1, 7), dtype=np.uint8).repeat(10, 1), (60, 70))
    image_HWC = np.stack([across_HW, down_HW, down_HW], -1) * np.uint8(255)
    sample = {"id": "a", "image": image_HWC, "semseg": across_HW, "human_parts": down_HW}
    out = TrainTransform((50, 60), tasks=("semseg", "human_parts"), photometric=False, **PLAIN)(sample, rng)
    for channel, task in enumerate(("semseg", "human_parts")):
        image_HW, label_HW = out["image"][channel].numpy(), out[task].numpy()
        inside_HW = label_HW != 255
        np.testing.assert_array_equal(image_HW[~inside_HW], 0)
        # The image crosses one half where the label steps; OpenCV's 1/32 pixel grid may move it by that.
        off_HW = np.abs(image_HW - label_HW)[inside_HW]
        assert off_HW.max() <= 0.5 + 1 / 16
        assert (off_HW < 0.01).mean() > 0.5


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_every_label_shows_the_source_pixel_that_the_image_shows(seed):
    """A checker scene whose image and labels all tell where in the source they are from.

    Red and green are 4x and 4y, semseg and parts x and y: bilinear and nearest pixel differ by half a pixel at most,
    and OpenCV's 1/32 pixel grid and the rounding of red and green by an eighth. All labels show one and the same pixel.
    """
    y_HW, x_HW = np.mgrid[:50, :60]
    angle_HW = (x_HW + 60 * y_HW) / 1000
    labels = {
        "semseg": x_HW.astype(np.uint8),
        "human_parts": y_HW.astype(np.uint8),
        "sal": ((x_HW // 5 + y_HW // 5) % 2).astype(np.uint8),
        "edge": ((x_HW + y_HW) % 2).astype(np.uint8),
        "depth": (1 + x_HW + 60 * y_HW).astype(np.float32),
        "normals": np.stack([np.sin(angle_HW), 0 * angle_HW, np.cos(angle_HW)], -1).astype(np.float32),
    }
    image_HWC = np.stack([4 * x_HW, 4 * y_HW, 0 * x_HW], -1).astype(np.uint8)
    transform = TrainTransform((44, 66), tasks=TASKS, photometric=False, **PLAIN)
    out = transform({"id": "a", "image": image_HWC, **labels}, np.random.default_rng(seed))
    inside_HW = out["semseg"].numpy() != 255
    x_N, y_N = (out[key].numpy()[inside_HW] for key in ("semseg", "human_parts"))
    for channel, place_N in enumerate((x_N, y_N)):
        seen_N = out["image"][channel].numpy()[inside_HW] * 255 / 4
        assert np.abs(seen_N - place_N).max() <= 0.5 + 1 / 16 + 1 / 8
    for key in ("sal", "edge"):
        np.testing.assert_array_equal(out[key].numpy()[inside_HW], labels[key][y_N, x_N])
    ratio_N = labels["depth"][y_N, x_N] / out["depth"].numpy()[inside_HW]
    assert np.ptp(ratio_N) < 1e-4 and 0.45 < ratio_N[0] < 2.01  # the scale, rounded to whole pixels
    normals_NC = out["normals"].numpy()[:, inside_HW].T
    sign = np.sign(np.diff(out["semseg"].numpy()[inside_HW.any(1).argmax()][inside_HW.any(0)].astype(int)).sum())
    np.testing.assert_allclose(normals_NC * [sign, 1, 1], labels["normals"][y_N, x_N], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, source=SIDES, scaled=SIDES, flip=st.booleans())
def test_nearest_against_a_loop(seed, source, scaled, flip):
    """The source pixel under the centre of each scaled pixel, in exact fractions."""
    rng = np.random.default_rng(seed)
    height, width = (int(rng.integers(1, side + 1)) for side in scaled)
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(scaled, (height, width)))
    label_HW = rng.integers(0, 256, source)
    window = Window(source, scaled, top, left, height, width, flip)
    truth_hw = np.zeros((height, width), int)
    for i in range(height):
        for j in range(width):
            y = math.floor(Fraction(2 * (top + i) + 1, 2) * Fraction(source[0], scaled[0]))
            x = math.floor(Fraction(2 * (left + j) + 1, 2) * Fraction(source[1], scaled[1]))
            truth_hw[i, width - 1 - j if flip else j] = label_HW[y, x]
    np.testing.assert_array_equal(window.nearest(label_HW), truth_hw)
    np.testing.assert_array_equal(window.nearest(np.stack([label_HW] * 3, -1))[..., 1], truth_hw)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_stored_normals_mirror_as_native_ones_do(seed):
    rgb_HWC = np.random.default_rng(seed).choice([0, 1, 127, 128, 254], (5, 6, 3)).astype(np.uint8)
    truth_HWC = codec.native("normals", rgb_HWC) * np.array([-1, 1, 1], np.float32)
    np.testing.assert_allclose(codec.native("normals", mirror_unit(rgb_HWC)), truth_HWC, atol=1e-6)
    np.testing.assert_array_equal(mirror_unit(mirror_unit(rgb_HWC)), rgb_HWC)


def test_a_mirrored_normal_does_not_turn_invalid():
    mirrored_HWC = mirror_unit(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8))
    assert np.isfinite(codec.native("normals", mirrored_HWC)).all(-1).tolist() == [[True, False]]


def test_a_filled_batch_is_the_stack_of_its_samples():
    transform = TrainTransform((16, 20), tasks=TASKS, **PLAIN)
    samples = [_sample(seed) for seed in range(3)]
    del samples[1]["depth"], samples[1]["normals"]
    batch = transform.empty(3)
    for index, sample in enumerate(samples):
        transform.fill(batch, index, sample, np.random.default_rng(index))
    for index, sample in enumerate(samples):
        alone = transform(sample, np.random.default_rng(index))
        for key, value in alone.items():
            assert value == "a" if key == "id" else torch.equal(value.nan_to_num(9), batch[key][index].nan_to_num(9))


def test_scale_one_without_chance_is_the_middle_crop_and_centred_padding():
    sample = _sample(hw=(20, 30))
    options = {"scale_range": (1, 1), "flip": False, "photometric": False, "random_crop": False}
    out = TrainTransform((26, 20), tasks=TASKS, **options, **PLAIN)(sample, np.random.default_rng(0))
    truth = sample["image"][:, 5:25].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(out["image"][:, 3:23], truth, atol=1e-6)
    assert not out["image"][:, :3].any() and not out["image"][:, 23:].any()
    for task in TASKS:
        native = codec.native(task, sample[task])[:, 5:25]
        truth = np.moveaxis(native, -1, 0) if task == "normals" else native
        np.testing.assert_array_equal(out[task][..., 3:23, :].numpy(), truth)
        padding = torch.cat([out[task][..., :3, :], out[task][..., 23:, :]], dim=-2)
        assert {"normals": padding.isnan(), "depth": padding == 0}.get(task, padding == 255).all()


def test_normalisation_is_by_mean_and_std_and_padding_is_zero():
    image_HWC = np.full((2, 4, 3), [0, 51, 255], np.uint8)
    tensor = EvalTransform((4, 6), mean=(0.5, 0.2, 0.4), std=(0.5, 0.1, 0.3))({"id": "a", "image": image_HWC})
    inner = unpad(tensor, (2, 4))
    np.testing.assert_allclose(inner[:, 0, 0], [-1, 0, 2], atol=1e-6)
    assert tensor.shape == (3, 4, 6) and tensor.abs().sum() == inner.abs().sum()


@given(hw=SIDES, extra=SIDES)
@settings(max_examples=30, deadline=None)
def test_unpad_gives_back_what_was_padded(hw, extra):
    image_HWC = np.random.default_rng(0).integers(1, 256, (*hw, 3), dtype=np.uint8)
    size = (hw[0] + extra[0] - 1, hw[1] + extra[1] - 1)
    tensor = EvalTransform(size, **PLAIN)({"id": "a", "image": image_HWC})
    np.testing.assert_array_equal(np.round(unpad(tensor, hw).numpy() * 255), image_HWC.transpose(2, 0, 1))


def test_an_image_larger_than_the_evaluation_size_is_named():
    with pytest.raises(UserError, match=r"image b7 is 5x4, larger than data\.image_size 4x6"):
        EvalTransform((4, 6), **PLAIN)({"id": "b7", "image": np.zeros((5, 4, 3), np.uint8)})


def test_missing_labels_are_all_ignored():
    sample = {key: value for key, value in _sample().items() if key in ("id", "image")}
    out = TrainTransform((8, 8), tasks=TASKS, **PLAIN)(sample, np.random.default_rng(0))
    for task in TASKS:
        assert {"normals": out[task].isnan(), "depth": out[task] == 0}.get(task, out[task] == 255).all()


def test_the_same_generator_gives_the_same_tensors_and_tasks_do_not_change_the_crop():
    sample = _sample()
    whole = TrainTransform((16, 16), tasks=TASKS, **PLAIN)
    first, second = (whole(sample, np.random.default_rng([3, 4])) for _ in range(2))
    alone = TrainTransform((16, 16), tasks=("depth",), **PLAIN)
    third = alone({key: sample[key] for key in ("id", "image", *alone.keys)}, np.random.default_rng([3, 4]))
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["image"], third["image"])
    assert torch.equal(first["depth"], third["depth"])
    assert not torch.equal(first["image"], whole(sample, np.random.default_rng([3, 5]))["image"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_crops_avoid_what_is_nearly_all_one_class(dtype):
    """Only the left tenth of the image is mixed: with ten tries most crops hold some of it, with one few would."""
    semseg_HW = np.zeros((20, 100), dtype)
    semseg_HW[:, :10] = np.arange(10) + (290 if dtype == np.uint16 else 0)  # more classes than 8 bits hold
    sample = {"id": "a", "image": np.zeros((20, 100, 3), np.uint8), "semseg": semseg_HW}
    transform = TrainTransform((20, 12), tasks=("semseg",), scale_range=(1, 1), flip=False, **PLAIN)
    crops = [transform(sample, np.random.default_rng(seed))["semseg"] for seed in range(100)]
    shares = np.array([np.bincount(crop.flatten()).max() / crop.numel() for crop in crops])
    # 8 of the 89 places pass; ten tries miss them all with probability (81/89)^10 = 0.39
    assert 0.45 < (shares < 0.75).mean() < 0.77


def test_random_choices_follow_the_fields_distributions():
    sample = {"id": "a", "image": np.zeros((10, 10, 3), np.uint8), "depth": np.ones((10, 10), np.float32)}
    sample["depth"][:, 5:] = 2
    transform = TrainTransform((40, 40), tasks=("depth",), photometric=False, **PLAIN)
    sizes, flips = [], 0
    for seed in range(400):
        depth_HW = transform(sample, np.random.default_rng(seed))["depth"].numpy()
        rows, cols = np.nonzero(depth_HW)
        sizes.append(len(np.unique(rows)))
        flips += depth_HW[rows[0], cols[0]] > depth_HW[rows[0], cols[-1]]
        np.testing.assert_allclose(depth_HW.max(), 2 / (sizes[-1] / 10), rtol=1e-6)
    assert (min(sizes), max(sizes)) == (5, 19) and 160 < flips < 240
    assert abs(np.mean(sizes) - 12) < 0.7  # int(10 * U(0.5, 2)) is uniform over 5..19


def test_photometric_distortion_stays_within_the_fields_ranges():
    grey_HWC = np.full((2, 2, 3), 100, np.uint8)
    values = [distort(grey_HWC, np.random.default_rng(seed))[0, 0].astype(int) for seed in range(400)]
    assert all(value.max() == value.min() for value in values)  # hue and saturation leave grey alone
    levels = np.array([value[0] for value in values])
    assert levels.min() >= math.floor(68 * 0.5) and levels.max() <= 132 * 1.5
    assert 0.15 < (levels == 100).mean() < 0.35  # neither brightness nor contrast: a quarter
    red_HWC = np.full((2, 2, 3), [200, 40, 40], np.uint8)
    seen = {tuple(distort(red_HWC, np.random.default_rng(seed))[0, 0].tolist()) for seed in range(50)}
    assert len(seen) > 20
    assert augment.HUE == 18 and augment.SATURATION == (0.5, 1.5)
