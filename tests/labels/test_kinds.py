"""What each kind of label promises, against closed forms: bytes, native values, geometry, batches and the way back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgmoe_dist.labels import (
    KINDS,
    BinaryMap,
    BoundaryMap,
    ClassMap,
    CodecError,
    ScalarMap,
    VectorMap,
)
from fgmoe_dist.labels.vectors import mirror_unit
from fgmoe_dist.tasks import TASKS
from fgmoe_dist.tasks.labelling import KNOWN_KEYS

SIZE = st.tuples(st.integers(1, 9), st.integers(1, 9))
DEPTH, NORMALS = KNOWN_KEYS["depth"], KNOWN_KEYS["normals"]
ALBEDO, FLOW5 = VectorMap(), VectorMap(5, range=(-2.0, 6.0))
EVERY = (ClassMap(3), ClassMap(300), BinaryMap(), BoundaryMap(), DEPTH, ScalarMap("px"), NORMALS, ALBEDO, FLOW5)


def _arrays(label):
    """Any arrays of a type and shape that the label stores."""
    tail = () if label.components is None else (label.components,)
    return st.sampled_from(label.dtypes).flatmap(
        lambda dtype: SIZE.flatmap(lambda hw: hnp.arrays(np.dtype(dtype), (*hw, *tail)))
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data(), label=st.sampled_from(EVERY))
def test_stored_arrays_come_back_bit_for_bit(data, label):
    array = data.draw(_arrays(label))
    extension, content = label.encode("x", array)
    back = label.decode("x", extension, content)
    assert extension in label.extensions and label.meaning.startswith(f"{extension}: ")
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("label", "array", "message"),
    [
        (ClassMap(3), np.zeros((2, 2), np.float32), "x has type float32, not uint8"),  # what would be truncated
        (ClassMap(3), np.zeros((2, 2), np.uint16), "x has type uint16, not uint8"),
        (ClassMap(300), np.zeros((2, 2), np.uint8), "x has type uint8, not uint16"),
        (ScalarMap(), np.zeros((2, 2), np.float64), "x has type float64, not float32"),
        (ScalarMap(), np.zeros((2, 2, 1), np.float32), r"x has shape \(2, 2, 1\), not \[H, W\]"),
        (ALBEDO, np.zeros((17, 2), np.float32), r"x has shape \(17, 2\), not \[H, W, 3\]"),  # keypoints
        (ALBEDO, np.zeros((2, 2, 4), np.float32), r"x has shape \(2, 2, 4\), not \[H, W, 3\]"),
        (FLOW5, np.zeros((2, 0, 5), np.float32), "x is empty"),
    ],
)
def test_arrays_of_another_kind_are_refused(label, array, message):
    with pytest.raises(CodecError, match=message):
        label.encode("x", array)


def test_a_label_of_another_size_than_its_image_is_refused():
    with pytest.raises(CodecError, match="x is 2x3 but its image is 2x2"):
        BinaryMap().check("x", np.zeros((2, 3), np.uint8), (2, 2))
    with pytest.raises(CodecError, match="x is 2x3 but its image is 4x6"):
        ALBEDO.check("x", np.zeros((2, 3, 3), np.uint8), (4, 6))


@pytest.mark.parametrize("label", EVERY, ids=str)
def test_an_empty_batch_has_no_valid_pixel_and_a_filled_one_those_of_the_label(label):
    batch = label.empty(2, (4, 5))
    assert not label.valid(batch).any() and label.valid(batch).shape == (2, 4, 5)
    rng = np.random.default_rng(0)
    tail = () if label.components is None else (label.components,)
    array = rng.integers(1, 3, (4, 5, *tail)).astype(label.dtypes[-1])
    array[1, 2] = label.ignore
    label.fill(batch[1].numpy(), array)
    assert not label.valid(batch[:1]).any()
    valid_HW = np.ones((4, 5), bool)
    valid_HW[1, 2] = False
    np.testing.assert_array_equal(label.valid(batch)[1], valid_HW)
    np.testing.assert_array_equal(label.valid(label.native(array)), valid_HW)
    moved = np.moveaxis(array, -1, 0) if tail else array
    np.testing.assert_array_equal(batch[1].numpy(), moved)
    expected = torch.int64 if array.dtype.kind == "u" else torch.float32
    assert batch.dtype == expected


def test_a_floating_point_label_is_never_rounded_into_class_ids():
    batch = ClassMap().empty(1, (2, 2))
    with pytest.raises(TypeError):
        ClassMap().fill(batch[0].numpy(), np.full((2, 2), 0.7, np.float32))
    assert (batch == 255).all()


@pytest.mark.parametrize(("count", "dtype", "ignore"), [(1, "uint8", 255), (255, "uint8", 255), (256, "uint16", 65535)])
def test_the_ignored_value_is_never_a_class(count, dtype, ignore):
    label = ClassMap(count)
    assert (label.dtype.name, label.ignore) == (dtype, ignore) and label.ignore >= label.count
    ids = np.array([[0, count - 1, ignore]], dtype)
    assert not label.strange(ids).size
    if count < ignore:
        assert label.strange(np.array([[count]], dtype)).tolist() == [count]
    with pytest.raises(ValueError, match="name 1 to 65535"):
        ClassMap(65536)


def test_values_follow_the_scale():
    value_HW = np.array([[0, 1.5, 6]], np.float32)
    for scales, truth in {"none": [0, 1.5, 6], "inverse": [0, 0.5, 2], "proportional": [0, 4.5, 18]}.items():
        np.testing.assert_array_equal(ScalarMap(scales=scales).rescale(value_HW, 3.0), [truth])
    assert DEPTH.scales == "inverse"
    vector_HWC = np.ones((1, 1, 3), np.float32)
    assert NORMALS.rescale(vector_HWC, 3.0) is vector_HWC
    with pytest.raises(ValueError, match="scales is 'up': use one of none, inverse, proportional"):
        ScalarMap(scales="up")


def test_a_flip_turns_directions_around_and_leaves_colours():
    colour_HWC = np.array([[[0.1, 0.2, 0.3]]], np.float32)
    assert ALBEDO.mirror(colour_HWC) is colour_HWC
    np.testing.assert_array_equal(NORMALS.mirror(colour_HWC), np.float32([[[-0.1, 0.2, 0.3]]]))
    np.testing.assert_array_equal(VectorMap(2, unit=True).mirror(colour_HWC[..., :2]), np.float32([[[-0.1, 0.2]]]))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), channels=st.integers(2, 5))
def test_coded_directions_of_any_dimension(data, channels):
    label = VectorMap(channels, unit=True)
    coded_HWC = data.draw(SIZE.flatmap(lambda hw: hnp.arrays(np.uint8, (*hw, channels))))
    raw_HWC = coded_HWC.astype(np.float64) * 2 / 255 - 1
    length_HW = np.sqrt((raw_HWC**2).sum(-1))
    valid_HW = (length_HW >= 0.1) & coded_HWC.any(-1)
    native_HWC = label.native(coded_HWC)
    np.testing.assert_array_equal(label.valid(native_HWC), valid_HW)
    np.testing.assert_allclose(native_HWC[valid_HW], (raw_HWC / length_HW[..., None])[valid_HW], atol=1e-6)
    mirrored_HWC = label.native(mirror_unit(coded_HWC))
    np.testing.assert_array_equal(label.valid(mirrored_HWC), valid_HW)


def test_coded_colours():
    coded_HWC = np.array([[[0, 51, 255]]], np.uint8)
    np.testing.assert_allclose(ALBEDO.native(coded_HWC), [[[0, 0.2, 1]]], rtol=1e-6)
    np.testing.assert_allclose(VectorMap(range=(-1.0, 4.0)).native(coded_HWC), [[[-1, 0, 4]]], atol=1e-6)
    batch = ALBEDO.empty(1, (1, 1))
    ALBEDO.fill(batch[0].numpy(), coded_HWC)
    np.testing.assert_array_equal(batch[0, :, 0, 0].numpy(), ALBEDO.native(coded_HWC)[0, 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 128])
def test_colours_are_interpolated_and_not_made_unit(channels):
    """Enlarged twice, the inner pixels are 3 : 1 mixtures of their neighbours (bilinear, pixel centres)."""
    row_w = np.array([0, 8, 16], np.float32)
    prediction_hwC = np.repeat(np.tile(row_w, (3, 1))[..., None], channels, -1)
    resized_HWC = VectorMap(channels, range=(0.0, 16.0)).resize(prediction_hwC, (6, 6))
    assert resized_HWC.shape == (6, 6, channels)
    np.testing.assert_allclose(resized_HWC[2, :, channels - 1], [0, 2, 6, 10, 14, 16])


def test_directions_are_made_unit_again_and_ids_never_mixed():
    direction_hwC = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    resized_HWC = NORMALS.resize(direction_hwC, (1, 4))
    np.testing.assert_allclose(np.linalg.norm(resized_HWC, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(resized_HWC[0, 1], np.array([3, 1, 0]) / np.sqrt(10), atol=1e-6)
    assert NORMALS.resize(direction_hwC, (1, 2)) is direction_hwC
    ids_hw = np.array([[3, 60000]], np.uint16)
    assert ClassMap(65535).resize(ids_hw, (1, 4)).tolist() == [[3, 3, 60000, 60000]]
    assert BinaryMap().resize(np.array([[0, 200]], np.uint8), (1, 4)).tolist() == [[0, 50, 150, 200]]


@pytest.mark.parametrize(
    ("label", "fine", "strange"),
    [
        (BinaryMap(), [0, 1, 255], [2]),
        (ClassMap(300), [299, 65535], [300]),
        (DEPTH, [0, 0.1], [-0.1, np.inf, np.nan]),
        (ScalarMap(), [-5, 0, np.nan], [np.inf, -np.inf]),
        (ALBEDO, [0, 1, np.nan], [1.2, -0.2, np.inf]),
        (NORMALS, [-1, 1, np.nan], [1.2, -np.inf]),
    ],
)
def test_valid_ranges(label, fine, strange):
    shape = (1, -1) if label.components is None else (-1, 1, 1)
    for values, truth in ((fine, []), (fine + strange, strange)):
        array = np.array(values, label.dtypes[-1]).reshape(shape).repeat(label.components or 1, -1)
        np.testing.assert_array_equal(label.strange(array)[:: label.components or 1], np.array(truth, array.dtype))


def test_every_kind_has_its_name_and_every_known_task_a_kind():
    assert {name: kind.kind for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert {task: KNOWN_KEYS[task].kind for task in TASKS} == {
        "semseg": "classes", "human_parts": "classes", "sal": "binary", "normals": "vectors", "depth": "scalar",
        "edge": "boundary",
    }  # fmt: skip


def test_the_meanings_that_shards_have_always_told():
    """Shards of before must be told to be the same: these words stand in their `index.json`."""
    png = "png: uint8 [H, W], 255 = ignore"
    assert {KNOWN_KEYS[task].meaning for task in ("semseg", "human_parts", "sal", "edge")} == {png}
    assert DEPTH.meaning == "npy: float32 [H, W] metres, 0 = invalid"
    assert NORMALS.meaning == (
        "npy: uint8 [H, W, 3], n = 2x/255 - 1 then scaled to unit length, (0, 0, 0) = invalid; "
        "or float32 unit vectors, NaN = invalid"
    )
