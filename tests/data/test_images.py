import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgmoe_dist.data.images import fit, list_images, read_image
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import ClassMap, ScalarMap, VectorMap

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def pad(array_hwx, size_hw):
    """Centred padding, written out independently."""
    out = np.zeros((*size_hw, *array_hwx.shape[2:]), array_hwx.dtype)
    top, left = (size_hw[0] - array_hwx.shape[0]) // 2, (size_hw[1] - array_hwx.shape[1]) // 2
    out[top : top + array_hwx.shape[0], left : left + array_hwx.shape[1]] = array_hwx
    return out


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.bmp", "a.PNG"])
def test_lossless_formats_are_read_exactly(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    assert (read_image(tmp_path / name) == RGB).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_formats(tmp_path, name):
    smooth = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    Image.fromarray(smooth).save(tmp_path / name, quality=95)
    assert np.abs(read_image(tmp_path / name).astype(int) - smooth).max() < 6


def test_exif_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png") == np.rot90(RGB, -1)).all()


def test_grey_palette_alpha_and_cmyk(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == RGB[..., :1]).all()
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "palette.png") == np.asarray(palette.convert("RGB"))).all()
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:5] = 0
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "alpha.png")
    found = read_image(tmp_path / "alpha.png")
    assert (found[:5] == 255).all() and (found[5:] == RGB[5:]).all()
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.tiff")
    assert read_image(tmp_path / "cmyk.tiff").shape == (20, 30, 3)


def test_16_bits_keep_the_upper_8(tmp_path):
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 255]


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    Image.fromarray(RGB).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    Image.fromarray(np.float32(RGB[..., 0])).save(tmp_path / "float.tiff")
    for name, message in {
        "empty.png": "0 bytes",
        "text.jpg": "no image",
        "cut.png": "cannot be read",
        "gone.png": "No such file",
        "float.tiff": "floating-point",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_beyond_memory_is_refused(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UserError, match="more than 400 pixels"):
        read_image(tmp_path / "a.png")


def test_listing(tmp_path):
    for name in ("b.JPG", "a.v2.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert {key: path.name for key, path in list_images(tmp_path).items()} == {"a_v2": "a.v2.png", "b": "b.JPG"}
    assert list_images(tmp_path / "b.JPG") == {"b": tmp_path / "b.JPG"}
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(UserError, match="b.JPG and b.png share a name"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images"):
        list_images(tmp_path / "folder.png")


@pytest.mark.parametrize(
    ("native_hw", "fitted_hw"),
    [
        ((425, 560), (425, 560)),  # as in evaluation: padded, not resized
        ((448, 576), (448, 576)),
        ((3000, 4000), (432, 576)),
        ((4000, 3000), (448, 336)),
        ((100, 100), (448, 448)),
        ((2, 5000), (1, 576)),
    ],
)
def test_fitted_sizes(native_hw, fitted_hw):
    image, how = fit(np.zeros((*native_hw, 3), np.uint8), (448, 576))
    assert image.shape[:2] == how.fitted_hw == fitted_hw and how.native_hw == native_hw


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_the_way_back_is_aligned(height, width):
    """A linear ramp fitted, padded and brought back is the same ramp, away from its clamped ends."""
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32)[None], (height, 1))
    image, how = fit(np.repeat(np.uint8(255 * ramp)[..., None], 3, axis=2), (40, 48))
    back = how.back(pad(image[..., 0].astype(np.float32) / 255, (40, 48)), ScalarMap())
    assert back.shape == (height, width)
    assert np.abs(back - ramp).max() <= 1.1 / min(how.fitted_hw[1], width) + 0.01


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_classes_are_never_mixed_and_directions_stay_unit(height, width):
    how = fit(np.zeros((height, width, 3), np.uint8), (40, 48))[1]
    rng = np.random.default_rng(height)
    classes = rng.choice(np.array([3, 200], np.uint8), (40, 48))
    assert set(np.unique(how.back(classes, ClassMap()))) <= {3, 200}
    normals = rng.normal(size=(40, 48, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    back = how.back(normals, VectorMap(unit=True))
    assert back.shape == (height, width, 3) and back.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(back, axis=2), 1, atol=1e-5)


def test_nearest_pixels_are_those_under_the_centre():
    how = fit(np.zeros((80, 96, 3), np.uint8), (40, 48))[1]
    ids = np.random.default_rng(1).integers(0, 255, (40, 48), dtype=np.uint8)
    assert (how.back(ids, ClassMap()) == np.repeat(np.repeat(ids, 2, 0), 2, 1)).all()
