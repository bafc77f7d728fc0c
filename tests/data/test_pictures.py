"""What pictures mean in every form that they come in, against files written byte by byte or by another library."""

import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fgmoe_dist.data.images import read_image
from fgmoe_dist.data.label_files import colours, directions, mask, mask_labels, measurements, whole_numbers
from fgmoe_dist.data.pictures import read_photograph, turn
from fgmoe_dist.errors import UserError
from tests.pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, write_png

HW = (5, 7)


def random(high: int, shape=HW, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def refused(message: str, read, *args) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(*args)
    assert str(args[0]) in str(caught.value) and "\n" not in str(caught.value)


# ---- numbers: class ids, regions, measurements ----


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_numbers_are_those_in_the_file(tmp_path, bits):
    value_HW = random(2**bits)
    path = write_png(tmp_path / "a.png", value_HW, bits)
    np.testing.assert_array_equal(whole_numbers(path), value_HW)
    np.testing.assert_array_equal(measurements(path), value_HW)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_numbers_are_indices_whatever_the_colours(tmp_path, bits):
    value_HW = random(2**bits)
    palette = [tuple(colour) for colour in random(256, (2**bits, 3)).tolist()]
    path = write_png(tmp_path / "a.png", value_HW, bits, PALETTE, palette, transparent=b"\0")
    np.testing.assert_array_equal(whole_numbers(path), value_HW)
    refused("a palette of colours, not measurements", measurements, path)


def test_a_grey_palette_in_order_is_grey(tmp_path):
    path = write_png(tmp_path / "a.png", random(256), 8, PALETTE, [(n, n, n) for n in range(256)])
    np.testing.assert_array_equal(measurements(path), random(256))


@pytest.mark.parametrize("dtype", ["i4", "u4", "i2", "u2", "i1", "u1", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_any_type_and_byte_order(tmp_path, dtype, order):
    info = np.iinfo(dtype) if dtype[0] != "f" else np.iinfo("i2")
    value_HW = np.array([[info.min, info.max, 0, 1], [5, 70000 % (info.max + 1), 2, 3]]).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, value_HW, byteorder=order)
    if (dtype, order) == ("u4", ">"):  # Pillow has no decoder for it: better a line than other numbers
        refused("cannot be read", measurements, path)
        return
    found_HW = measurements(path)
    np.testing.assert_array_equal(found_HW.astype(np.float64), value_HW.astype(np.float64))
    np.testing.assert_array_equal(whole_numbers(path), value_HW)


def test_a_float_tiff_of_fractions_has_no_class_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full(HW, 1.5, np.float32))
    assert (measurements(tmp_path / "a.tif") == 1.5).all()
    refused("holds value 1.5, no whole number", whole_numbers, tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", random(5).astype(dtype), photometric="miniswhite")
    refused("its 0 is white", whole_numbers, tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, RGB), (16, RGB), (8, RGBA), (16, RGBA), (8, GREY_ALPHA), (16, GREY_ALPHA)]
)
def test_equal_channels_are_one_and_others_are_refused(tmp_path, bits, kind):
    count = {RGB: 3, RGBA: 4, GREY_ALPHA: 2}[kind]
    value_HWC = np.repeat(random(2**bits)[..., None], count, axis=2)
    if kind != RGB:
        value_HWC[..., -1] = 2**bits - 1
    path = write_png(tmp_path / "a.png", value_HWC, bits, kind)
    np.testing.assert_array_equal(whole_numbers(path), value_HWC[..., 0])
    if kind != RGB:
        value_HWC[0, 0, -1] = 0
        refused("has transparent pixels", whole_numbers, write_png(path, value_HWC, bits, kind))
    if kind != GREY_ALPHA:
        value_HWC[0, 0] = [1, 2, 3, 2**bits - 1][:count]
        refused("is a colour picture", whole_numbers, write_png(path, value_HWC, bits, kind))


@pytest.mark.parametrize("name", ["a.jpg", "a.gif", "a.webp", "a.jp2"])
def test_formats_that_change_numbers_are_refused(tmp_path, name):
    Image.fromarray(random(9).astype(np.uint8)).save(tmp_path / name)
    refused("save numbers as PNG, or as .npy", whole_numbers, tmp_path / name)


def test_the_content_tells_the_format_not_the_name(tmp_path):
    Image.fromarray(random(9).astype(np.uint8)).save(tmp_path / "a.png", "JPEG")
    refused("is a JPEG", whole_numbers, tmp_path / "a.png")


@pytest.mark.parametrize("high", [1, 5, 255, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_of_any_maximum(tmp_path, high, plain):
    value_HW = random(high + 1)
    body = " ".join(map(str, value_HW.ravel())).encode()
    if not plain:
        body = value_HW.astype(np.uint8 if high < 256 else ">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(f"P{2 if plain else 5} 7 5 {high}\n".encode() + body)
    np.testing.assert_array_equal(whole_numbers(tmp_path / "a.pgm"), value_HW)


def test_lossless_formats_give_the_same_numbers(tmp_path):
    value_HW = random(256).astype(np.uint8)
    for name in ("a.png", "a.bmp", "a.tif", "a.tga"):
        Image.fromarray(value_HW).save(tmp_path / name)
        np.testing.assert_array_equal(whole_numbers(tmp_path / name), value_HW)
    Image.fromarray(value_HW).convert("RGB").save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(whole_numbers(tmp_path / "a.webp"), value_HW)


def test_several_frames_are_no_label(tmp_path):
    frames = [Image.fromarray(random(9, seed=n).astype(np.uint8)) for n in range(3)]
    for name in ("a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        refused("has 3 frames or pages", whole_numbers, tmp_path / name)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_written_is_read_or_refused(tmp_path_factory, data):
    """Random files: the numbers written, or one line; mutated bytes: any numbers, or one line."""
    folder = tmp_path_factory.mktemp("p")
    bits = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    value_HW = random(2**bits, (height, width), data.draw(st.integers(0, 99)))
    path = write_png(folder / "a.png", value_HW, bits, GREY)
    np.testing.assert_array_equal(whole_numbers(path), value_HW)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(8, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(place, len(content)))])
    for read in (whole_numbers, measurements, mask, read_image):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


# ---- masks ----


@pytest.mark.parametrize(("bits", "values", "bright"), [
    (1, [0, 1], [0, 1]), (2, [0, 1, 2, 3], [0, 0, 1, 1]), (4, [0, 7, 8, 15], [0, 0, 1, 1]),
    (8, [0, 127, 128, 255], [0, 0, 1, 1]), (16, [0, 32767, 32768, 65535], [0, 0, 1, 1]),
])  # fmt: skip
def test_brighter_than_half_in_any_depth(tmp_path, bits, values, bright):
    path = write_png(tmp_path / "a.png", np.tile(values, (3, 1)), bits)
    assert mask(path)[0].tolist() == [bool(value) for value in bright]


def test_a_palettes_colours_are_the_mask_not_its_indices(tmp_path):
    white_first = [(255, 255, 255), (0, 0, 0), (100, 100, 100)]
    path = write_png(tmp_path / "a.png", np.tile([0, 1, 2], (3, 1)), 2, PALETTE, white_first)
    assert mask(path)[0].tolist() == [True, False, False]
    assert mask(write_png(path, np.tile([0, 1], (3, 1)), 1, PALETTE, white_first[:2]))[0].tolist() == [True, False]
    maroon = write_png(path, np.tile([0, 1], (3, 1)), 8, PALETTE, [(0, 0, 0), (128, 0, 0)])
    refused(r"the palette's colour \(128, 0, 0\), neither black nor white: write `encoding: labels`", mask, maroon)
    assert mask_labels(maroon)[0].tolist() == [0, 1]
    unused = write_png(path, np.tile([0, 1], (3, 1)), 8, PALETTE, [(0, 0, 0), (255, 255, 255), (9, 0, 0)])
    assert mask(unused)[0].tolist() == [False, True]


@pytest.mark.parametrize("values", [[0, 1], [1, 1], [0, 100], [200, 255], [100, 100], [0, 1, 255], [1, 255]])
def test_what_would_be_black_or_white_all_over_is_refused(tmp_path, values):
    path = write_png(tmp_path / "a.png", np.tile(values, (3, 1)))
    refused("holds ", mask, path)


@pytest.mark.parametrize("values", [[0, 0], [255, 255], [0, 255], [0, 3, 9, 14], [0, 40, 255]])
def test_what_is_a_mask_is_taken(tmp_path, values):
    assert mask(write_png(tmp_path / "a.png", np.tile(values, (3, 1))))[0].tolist() == [v > 127 for v in values]


def test_eight_bits_in_sixteen_are_refused(tmp_path):
    refused("where white is 65535", mask, write_png(tmp_path / "a.png", np.tile([0, 9, 130, 255], (3, 1)), 16))
    refused("where white is 65535", mask, write_png(tmp_path / "a.png", np.tile([0, 255], (3, 1)), 16))


def test_masks_in_colour_alpha_jpeg_and_arrays(tmp_path):
    value_HW = np.tile([0, 255, 255, 0], (8, 4))
    Image.fromarray(np.repeat(value_HW[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(mask(tmp_path / "a.png"), value_HW > 0)
    Image.fromarray(np.repeat(np.repeat(value_HW, 8, 0), 8, 1).astype(np.uint8)).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(mask(tmp_path / "a.jpg")[4::8, 4::8], value_HW > 0)
    cut_HWC = np.dstack([np.full((8, 16, 3), 255), value_HW])  # a cutout: the mask is in alpha
    refused("transparent pixels", mask, write_png(tmp_path / "b.png", cut_HWC, 8, RGBA))
    refused("is a colour picture", mask, write_png(tmp_path / "c.png", random(256, (8, 16, 3)), 8, RGB))
    for name, array in {"bool": value_HW > 0, "u8": value_HW.astype(np.uint8), "f": value_HW / 255.0}.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(mask(tmp_path / f"{name}.npy"), value_HW > 0)
    np.save(tmp_path / "i.npy", value_HW)
    refused("in which no value is known to be white", mask, tmp_path / "i.npy")
    np.save(tmp_path / "one.npy", (value_HW > 0).astype(np.uint8))
    refused("write `encoding: labels`", mask, tmp_path / "one.npy")
    assert mask_labels(tmp_path / "one.npy").tolist() == (value_HW > 0).tolist()


# ---- colours and directions ----


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "count"), [(GREY, 1), (RGB, 3), (RGBA, 4)])
def test_components_keep_their_bits_and_their_order(tmp_path, bits, kind, count):
    value_HWC = random(2**bits, (*HW, count))
    path = write_png(tmp_path / "a.png", value_HWC if count > 1 else value_HWC[..., 0], bits, kind)
    found_HWC = colours(path, count)
    assert found_HWC.dtype == {8: np.uint8, 16: np.uint16}[bits]
    np.testing.assert_array_equal(found_HWC, value_HWC)
    refused("not 2 of 8 or 16 bits", colours, path, 2)


def test_sixteen_bit_tiffs_and_palettes_are_colours_too(tmp_path):
    value_HWC = random(65536, (*HW, 3)).astype(np.uint16)
    for order in "<>":
        tifffile.imwrite(tmp_path / "a.tif", value_HWC, byteorder=order, photometric="rgb")
        np.testing.assert_array_equal(colours(tmp_path / "a.tif", 3), value_HWC)
    palette = [(9, 8, 7), (1, 2, 3)]
    path = write_png(tmp_path / "a.png", np.tile([1, 0], (2, 1)), 1, PALETTE, palette)
    assert colours(path, 3)[0].tolist() == [[1, 2, 3], [9, 8, 7]]


def test_directions_in_every_form(tmp_path):
    way_HWC = np.tile([[0.6, 0.0, 0.8], [0, 0, 0], [-0.6, 0.8, 0]], (2, 1, 1))
    truth_HWC = np.where(way_HWC.any(-1, keepdims=True), way_HWC, np.nan)
    for name, array in {
        "float": way_HWC, "half": way_HWC.astype(np.float16), "long": 7 * way_HWC, "big": way_HWC.astype(">f8"),
        "fortran": np.asfortranarray(way_HWC),
    }.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_allclose(directions(tmp_path / f"{name}.npy", 3), truth_HWC, atol=1e-3)
    coded_HWC = np.round((way_HWC + 1) / 2 * 65535).astype(np.uint16)
    np.save(tmp_path / "16.npy", coded_HWC)
    np.testing.assert_allclose(directions(tmp_path / "16.npy", 3), truth_HWC, atol=1e-4)
    np.testing.assert_allclose(directions(write_png(tmp_path / "16.png", coded_HWC, 16, RGB), 3), truth_HWC, atol=1e-4)
    np.save(tmp_path / "8.npy", (coded_HWC // 257).astype(np.uint8))
    assert directions(tmp_path / "8.npy", 3).dtype == np.uint8  # coded, as a picture is
    np.save(tmp_path / "half.npy", (way_HWC + 1) / 2)
    refused("colours that nobody decoded: save n = 2x - 1", directions, tmp_path / "half.npy", 3)
    np.save(tmp_path / "byte.npy", (way_HWC + 1) / 2 * 255)
    refused("save n = 2x/255 - 1", directions, tmp_path / "byte.npy", 3)
    refused("uint8 of 1 channels", directions, write_png(tmp_path / "g.png", random(256)), 3)


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_every_orientation_is_shown_as_pillow_shows_it(tmp_path, name, orientation):
    rgb_HWC = np.kron(random(2, (3, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8) * 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {"quality": 95} if name == "a.jpg" else {}
    Image.fromarray(rgb_HWC).save(tmp_path / name, exif=exif, **options)
    shown_HWC = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB"))
    found_HWC, tag = read_photograph(tmp_path / name)
    assert tag == orientation
    np.testing.assert_array_equal(found_HWC, shown_HWC)
    np.testing.assert_array_equal(read_image(tmp_path / name), shown_HWC)
    assert np.abs(turn(rgb_HWC, orientation).astype(int) - found_HWC)[8::16, 8::16].max() < 30
    if name != "a.jpg":
        np.testing.assert_array_equal(colours(tmp_path / name, 3), shown_HWC)
    if name != "a.tif":
        stored_HWC = read_photograph(tmp_path / name, upright=False)[0]
        assert np.abs(stored_HWC.astype(int) - rgb_HWC)[8::16, 8::16].max() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_are_turned_by_a_tag_of_their_own(tmp_path, orientation):
    value_HW, deep_HWC = random(256), random(65536, (*HW, 3))
    path = write_png(tmp_path / "a.png", value_HW, orientation=orientation)
    np.testing.assert_array_equal(whole_numbers(path), turn(value_HW, orientation))
    path = write_png(tmp_path / "b.png", deep_HWC, 16, RGB, orientation=orientation)
    np.testing.assert_array_equal(colours(path, 3), turn(deep_HWC, orientation))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_tag_that_means_nothing_turns_nothing(tmp_path, orientation):
    path = write_png(tmp_path / "a.png", random(256), orientation=orientation)
    np.testing.assert_array_equal(whole_numbers(path), random(256))


# ---- photographs ----


@pytest.mark.parametrize(
    ("bits", "kind"), [(1, GREY), (2, GREY), (4, GREY), (8, RGB), (16, GREY), (16, RGB), (16, RGBA)]
)
def test_photographs_of_any_depth_are_eight_bits_of_the_same_brightness(tmp_path, bits, kind):
    count = {GREY: 1, RGB: 3, RGBA: 4}[kind]
    value_HWC = random(2**bits, (*HW, count))
    if kind == RGBA:
        value_HWC[..., 3] = 2**bits - 1
    path = write_png(tmp_path / "a.png", value_HWC if count > 1 else value_HWC[..., 0], bits, kind)
    expected_HWC = value_HWC[..., :3] / (2**bits - 1) * 255
    assert np.abs(read_image(path) - expected_HWC).max() <= 1


def test_transparent_photographs_lie_on_white(tmp_path):
    path = write_png(tmp_path / "a.png", np.tile([0, 1], (2, 1)), 1, PALETTE, [(9, 9, 9), (1, 2, 3)], transparent=b"\0")
    assert read_image(path)[0].tolist() == [[255, 255, 255], [1, 2, 3]]


def test_a_cmyk_jpeg_is_what_it_looks_like(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() < 12


# ---- what cannot be read ----


def test_a_picture_beyond_memory_is_refused_by_every_reader(tmp_path):
    path = write_png(tmp_path / "a.png", np.zeros((1, 1)))
    content = bytearray(path.read_bytes())
    content[16:24] = (14000).to_bytes(4, "big") * 2  # 196 megapixels
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    for read in (whole_numbers, measurements, mask, read_image):
        refused("Image size: more than 89,478,485 pixels", read, path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "folder.png").mkdir()
    refused("it is no file|is missing", whole_numbers, tmp_path / "folder.png")
    refused("cannot be read", whole_numbers, tmp_path / ("x" * 300 + ".png"))
    (tmp_path / "text.png").write_text("hello")
    refused("no image of a known kind", whole_numbers, tmp_path / "text.png")
    buffer = io.BytesIO()
    Image.fromarray(random(9).astype(np.uint8)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:60])
    refused("cannot be read", whole_numbers, tmp_path / "cut.png")
