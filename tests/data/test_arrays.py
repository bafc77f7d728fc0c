"""Arrays that anyone may have saved as .npy: plain numbers come out, all else is one line."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.data.arrays import read_array
from fgmoe_dist.data.label_files import components, measurements, whole_numbers
from fgmoe_dist.data.layouts.sections import Depth, Scalar
from fgmoe_dist.errors import UserError

HW = (4, 5)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def npz(path):
    with path.open("wb") as file:
        np.savez(file, depth=np.ones(HW))


def shortened(path):
    np.save(path, np.ones(HW))
    path.write_bytes(path.read_bytes()[:-1])


def boastful(path):
    """A header that claims a terabyte."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)})
    path.write_bytes(buffer.getvalue())


ODD = {
    "an npz": (npz, "an .npz archive of several arrays"),
    "structures": (np.zeros(HW, [("a", "f4"), ("b", "u1")]), "values of type"),
    "structures with long names": (np.zeros(HW, [("ä", "f4")]), "no array of plain numbers|values of type"),
    "texts": (np.full(HW, "1.5"), "values of type <U3"),
    "bytes": (np.full(HW, b"1"), r"values of type \|S1"),
    "dates": (np.zeros(HW, "M8[s]"), "values of type datetime64"),
    "durations": (np.zeros(HW, "m8[s]"), "values of type timedelta64"),
    "complex numbers": (np.ones(HW, complex), "values of type complex128"),
    "nothing": (np.ones((0, 5)), r"an empty array of shape \(0, 5\)"),
    "cut off": (shortened, "cut off: 159 of 160 bytes"),
    "a terabyte that is not there": (boastful, "cut off: 0 of 8796093022208 bytes"),
    "an object": (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "never unpickled"),
    "objects that would run code": (
        lambda path: np.save(path, np.array([Evil()], object), allow_pickle=True),
        "never unpickled",
    ),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps(Evil())), "cannot be read"),
    "a text": (lambda path: path.write_text("1 2 3"), "cannot be read"),
    "0 bytes": (lambda path: path.write_bytes(b""), "is 0 bytes long"),
    "a header cut short": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': "), "cannot be read"),
    "a header of nonsense": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00(((("), "cannot be read"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_array_of_numbers_is_one_line(tmp_path, what):
    content, message = ODD[what]
    content(tmp_path / "a.npy") if callable(content) else np.save(tmp_path / "a.npy", content)
    for read in (read_array, measurements, whole_numbers, lambda path: components(path, 3)):
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / "a.npy")
        assert "a.npy" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_number_in_any_order_is_what_was_saved(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]))
    order = data.draw(st.sampled_from("<>")) if kind != "?" else ""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    value_HW = (rng.uniform(-100, 100, HW) if kind[0] in "if" else rng.uniform(0, 200, HW)).astype(order + kind)
    path = tmp_path_factory.mktemp("a") / "a.npy"
    np.save(path, np.asfortranarray(value_HW) if data.draw(st.booleans()) else value_HW)
    found_HW = read_array(path)
    np.testing.assert_array_equal(found_HW, value_HW)
    assert found_HW.dtype.isnative and found_HW.flags.c_contiguous
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for read in (read_array, measurements, whole_numbers):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_shapes_that_are_no_map_are_refused_by_the_files_name(tmp_path):
    for shape in ((4, 5, 1), (1, 4, 5)):
        np.save(tmp_path / "a.npy", np.ones(shape))
        assert measurements(tmp_path / "a.npy").shape == HW
    for shape in ((), (5,), (2, 4, 5), (4, 5, 3), (1, 4, 5, 1)):
        np.save(tmp_path / "a.npy", np.ones(shape))
        with pytest.raises(UserError, match=r"a.npy has shape \(.*\), not \[H, W\]: save one number a pixel"):
            measurements(tmp_path / "a.npy")


def test_class_numbers_in_arrays_are_whole(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[-1.0, 0, 12]]))
    assert whole_numbers(tmp_path / "a.npy").tolist() == [[-1, 0, 12]]
    for value, shown in ((0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf"), (1e300, r"1e\+300")):
        np.save(tmp_path / "a.npy", np.array([[0, value]]))
        with pytest.raises(UserError, match=f"a.npy holds value {shown}, no whole number"):
            whole_numbers(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([[2**64 - 1]], np.uint64))
    with pytest.raises(UserError, match="a.npy holds value 18446744073709551615"):
        whole_numbers(tmp_path / "a.npy")


def test_depth_beyond_32_bits_is_refused_unless_it_is_named_invalid(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[1.5, 1e300, np.nan, np.inf, -5]]))
    with pytest.raises(UserError, match=r"a.npy holds 1e\+300, more than 32 bits hold: name it under invalid"):
        Depth(file="{id}.npy").read("depth", path)
    found_HW = Depth(file="{id}.npy", invalid=[1e300]).read("depth", path)["depth"]
    assert found_HW.tolist() == [[1.5, 0, 0, 0, 0]] and found_HW.dtype == np.float32
    np.testing.assert_array_equal(
        Scalar(file="{id}.npy", invalid=[1e300]).read("x", path)["x"], np.float32([[1.5, np.nan, np.nan, np.nan, -5]])
    )
    np.save(path, np.array([[3e38]], np.float32))
    with pytest.raises(UserError, match="more than 32 bits hold"):
        Scalar(file="{id}.npy", factor=10).read("x", path)
    np.save(path, np.array([[2500, 60000]], np.float16))
    np.testing.assert_allclose(Depth(file="{id}.npy", unit=2).read("depth", path)["depth"], [[5000, 120000]], rtol=1e-3)


@pytest.mark.parametrize(("dtype", "values", "metres"), [
    ("<i4", [70000, -5, 0, 1000], [70.0, 0, 0, 1.0]), (">i4", [70000, -5, 0, 1000], [70.0, 0, 0, 1.0]),
    ("<u2", [65535, 5, 0, 1000], [65.535, 0.005, 0, 1.0]), ("<f4", [1500.5, -5, np.nan, 1000], [1.5005, 0, 0, 1.0]),
])  # fmt: skip
def test_depth_tiffs_of_32_bits_do_not_wrap(tmp_path, dtype, values, metres):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.array([values], dtype), byteorder=dtype[0])
    found_HW = Depth(file="{id}.tif", unit=0.001).read("depth", tmp_path / "a.tif")["depth"]
    np.testing.assert_allclose(found_HW, [metres], rtol=1e-6)
