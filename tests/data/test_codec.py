"""Bytes and arrays: exact both ways, and refused where they are not what their key says."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fgmoe_dist.data import codec

SIZE = st.tuples(st.integers(1, 9), st.integers(1, 9))
MAPS = SIZE.flatmap(lambda hw: hnp.arrays(np.uint8, hw))
COLOURS = SIZE.flatmap(lambda hw: hnp.arrays(np.uint8, (*hw, 3)))
FLOATS = SIZE.flatmap(lambda hw: hnp.arrays(np.float32, hw))
VECTORS = SIZE.flatmap(lambda hw: hnp.arrays(np.float32, (*hw, 3)))


def _round_trip(key, array):
    back = codec.decode(key, *codec.encode(key, array))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # every bit, NaN's too


@settings(max_examples=25, deadline=None)
@given(maps=MAPS, colours=COLOURS, floats=FLOATS, vectors=VECTORS)
def test_every_kind_comes_back_bit_for_bit(maps, colours, floats, vectors):
    for key in ("semseg", "human_parts", "sal", "edge", "boundary"):
        _round_trip(key, maps)
    _round_trip("image", colours)
    _round_trip("normals", colours)
    _round_trip("normals", vectors)
    _round_trip("depth", floats)


@settings(max_examples=50, deadline=None)
@given(rgb_HWC=COLOURS)
def test_normals_are_unit_or_nan(rgb_HWC):
    normals_HWC = codec.native("normals", rgb_HWC)
    assert normals_HWC.shape == rgb_HWC.shape and normals_HWC.dtype == np.float32
    raw_HWC = rgb_HWC.astype(np.float64) * 2 / 255 - 1
    length_HW = np.sqrt((raw_HWC**2).sum(-1))
    valid_HW = (length_HW >= 0.1) & rgb_HWC.any(-1)
    np.testing.assert_array_equal(np.isfinite(normals_HWC).all(-1), valid_HW)
    np.testing.assert_array_equal(np.isnan(normals_HWC).all(-1), ~valid_HW)
    np.testing.assert_allclose(normals_HWC[valid_HW], (raw_HWC / length_HW[..., None])[valid_HW], atol=1e-6)


def test_what_is_native_already_is_left_alone():
    vectors_HWC = np.full((2, 2, 3), np.nan, np.float32)
    assert codec.native("normals", vectors_HWC) is vectors_HWC
    label_HW = np.zeros((2, 2), np.uint8)
    assert codec.native("semseg", label_HW) is label_HW


def test_a_jpeg_reads_as_pillow_reads_it_and_its_orientation_tag_is_ignored():
    image_HWC = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), (63, 41))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).convert(mode).save(buffer, "jpeg", exif=exif)
        truth_HWC = np.array(Image.open(buffer).convert("RGB"))
        np.testing.assert_array_equal(codec.decode("image", "jpg", buffer.getvalue()), truth_HWC)


def test_a_cut_off_jpeg_is_refused():
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (40, 40, 3)))[1].tobytes()
    with pytest.raises(codec.CodecError, match="cut-off JPEG"):
        codec.decode("image", "jpg", data[: len(data) // 2])


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("semseg", np.zeros((2, 2), np.int64), "semseg has type int64, not uint8"),
        ("depth", np.zeros((2, 2, 1), np.float32), r"depth has shape \(2, 2, 1\), not \[H, W\]"),
        ("normals", np.zeros((2, 2), np.uint8), r"normals has shape \(2, 2\), not \[H, W, 3\]"),
        ("image", np.zeros((0, 2, 3), np.uint8), "image is empty"),
    ],
)
def test_an_array_that_its_key_does_not_promise_is_refused(key, array, message):
    with pytest.raises(codec.CodecError, match=message):
        codec.encode(key, array)


@pytest.mark.parametrize(
    ("key", "extension", "data", "message"),
    [
        ("semseg", "pkl", b"x", r"semseg\.pkl is no known entry"),
        ("colour", "png", b"x", r"colour\.png is no known entry"),
        ("depth", "npy", b"", "depth is 0 bytes long"),
        ("depth", "npy", b"\x93NUMPY\x01\x00", "depth is no readable .npy"),
        ("depth", "npy", b"PK\x03\x04" + b"0" * 40, "depth is no readable .npy"),
        ("depth", "npy", b"\x93NUMPY\x01\x00\x0c\x00{'descr': (\n ", "depth is no readable .npy"),
        ("semseg", "png", b"\x89PNG\r\n", "semseg is no readable png"),
    ],
)
def test_bytes_that_their_key_does_not_promise_are_refused(key, extension, data, message):
    with pytest.raises(codec.CodecError, match=message):
        codec.decode(key, extension, data)


def test_boundary_is_read_for_evaluation_of_edges_only():
    assert codec.keys_of(["semseg", "edge"]) == ("semseg", "edge")
    assert codec.keys_of(["semseg", "edge"], evaluation=True) == ("semseg", "edge", "boundary")
    assert codec.keys_of(["depth"], evaluation=True) == ("depth",)
