"""Predictions as files: what is written is read back as it was, and each kind of bad file is named."""

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.predictions import PredictionWriter, read_prediction, write_predictions
from fgmoe_dist.tasks.class_map import ClassTask
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.semseg import Semseg

SHAPE = (6, 8)
SEMSEG = Semseg("semseg", ["a", "b", "c"])


def rng():
    return np.random.default_rng(0)


def test_what_is_written_is_read_back(tmp_path):
    many = ClassTask("species", [f"s{i}" for i in range(1000)])
    normals = rng().normal(size=(*SHAPE, 3)).astype(np.float32)
    saved = {
        "semseg": rng().integers(0, 3, SHAPE).astype(np.uint8),
        "species": rng().integers(0, 1000, SHAPE).astype(np.uint16),
        "depth": rng().uniform(1, 5, SHAPE).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }
    PredictionWriter(tmp_path).update({"id": "7"}, saved)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "semseg/7.png", "species/7.png", "depth/7.npy", "normals/7.npy"
    }  # fmt: skip
    for task in (SEMSEG, many, Depth(), Normals()):
        found = read_prediction(tmp_path, task, "7")
        assert found.dtype == saved[task.name].dtype
        np.testing.assert_array_equal(found, saved[task.name])


def test_a_palette_png_is_read_as_class_ids(tmp_path):
    ids = rng().integers(0, 3, SHAPE).astype(np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([200, 10, 10, 0, 90, 0, 0, 0, 7])
    (tmp_path / "semseg").mkdir()
    image.save(tmp_path / "semseg" / "1.png")
    np.testing.assert_array_equal(read_prediction(tmp_path, SEMSEG, "1"), ids)


def test_none_and_two_files_for_one_prediction_are_refused(tmp_path):
    with pytest.raises(UserError, match="semseg/1.png or .npy is missing: predict it"):
        read_prediction(tmp_path, SEMSEG, "1")
    write_predictions(tmp_path, "1", {"semseg": np.zeros(SHAPE, np.uint8)})
    np.save(tmp_path / "semseg" / "1.npy", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match="both exist: remove one"):
        read_prediction(tmp_path, SEMSEG, "1")


@pytest.mark.parametrize("content", [b"not numpy", b"", np.array([{}], object)])
def test_damaged_or_pickled_files_are_refused(tmp_path, content):
    path = tmp_path / "depth" / "1.npy"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match="depth/1.npy cannot be read"):
        read_prediction(tmp_path, Depth(), "1")


def test_a_task_says_what_values_can_be_meant(tmp_path):
    coded = np.full((*SHAPE, 3), [255, 128, 0], np.uint8)
    (tmp_path / "normals").mkdir()
    Image.fromarray(coded).save(tmp_path / "normals" / "1.png")
    expected = np.float32([1, 128 * 2 / 255 - 1, -1])
    np.testing.assert_allclose(read_prediction(tmp_path, Normals(), "1")[0, 0], expected, atol=1e-6)
    write_predictions(tmp_path, "2", {"normals": coded.astype(np.float32), "depth": np.full(SHAPE, 2000.0)})
    with pytest.raises(UserError, match="normals/2.npy has components up to 255; save unit vectors"):
        read_prediction(tmp_path, Normals(), "2")
    with pytest.raises(UserError, match="depth/2.npy is 2e\\+03 m at the median; save metres"):
        read_prediction(tmp_path, Depth(), "2")
