"""Scoring of saved files against scoring in memory, and each kind of bad file named."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.score import read_prediction, score
from fgmoe_dist.metrics.meters import DepthMeter, IoUMeter, NormalsMeter

SHAPE = (6, 8)


def label(id_):
    rng = np.random.default_rng(int(id_))
    normals = rng.normal(size=(*SHAPE, 3)).astype(np.float32)
    sample = {
        "id": id_,
        "semseg": rng.integers(0, 3, SHAPE).astype(np.uint8),
        "depth": rng.uniform(1, 5, SHAPE).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }
    if id_ == "3":
        del sample["semseg"]
    return sample


@dataclass(frozen=True)
class MemoryPart:
    ids: tuple[str, ...]

    def samples(self, tasks):
        return map(label, self.ids)


def meters():
    return {"semseg": IoUMeter(3, ["a", "b", "c"]), "depth": DepthMeter(), "normals": NormalsMeter()}


@pytest.fixture
def folder(tmp_path):
    """Predictions of images 1, 2, 3: the next image's labels, so that they are wrong but valid."""
    for task in meters():
        (tmp_path / task).mkdir()
    for id_ in "123":
        other = label(str(int(id_) + 3))
        Image.fromarray(other["semseg"]).save(tmp_path / "semseg" / f"{id_}.png")
        np.save(tmp_path / "depth" / f"{id_}.npy", other["depth"])
        Image.fromarray(np.round((other["normals"] + 1) * 127.5).astype(np.uint8)).save(
            tmp_path / "normals" / f"{id_}.png"
        )
    return tmp_path


PARTS = [MemoryPart(("1", "2")), MemoryPart(("3",))]


@pytest.mark.parametrize("workers", [1, 2])
def test_files_score_as_arrays_do(folder, workers):
    scored = score(PARTS, meters(), folder, workers)
    expected = meters()
    for id_ in "123":
        other = label(str(int(id_) + 3))
        for task, meter in expected.items():
            meter.update(other[task], label(id_))
    for task in ("semseg", "depth"):
        assert scored.scores()[task] == pytest.approx(expected[task].compute(), rel=1e-12)
    # uint8 normals are off by a third of a degree at most each
    assert scored.scores()["normals"]["mean"] == pytest.approx(expected["normals"].compute()["mean"], abs=0.2)
    assert set(scored.images) == {"1", "2", "3"}
    assert "semseg" not in scored.images["3"]  # no label, so no prediction is asked for
    assert scored.details()["tasks"]["semseg"].keys() == {"IoU/a", "IoU/b", "IoU/c"}


def test_a_palette_png_is_read_as_class_ids(folder):
    image = Image.fromarray(label("1")["semseg"])
    image.putpalette([200, 10, 10, 0, 90, 0, 0, 0, 7])
    image.save(folder / "semseg" / "1.png")
    np.testing.assert_array_equal(read_prediction(folder, "semseg", "1"), label("1")["semseg"])


def test_a_missing_folder_and_a_missing_file_are_named(folder):
    (folder / "depth" / "2.npy").unlink()
    with pytest.raises(UserError, match=r"depth/2.png or .npy is missing"):
        score(PARTS, meters(), folder)
    with pytest.raises(UserError, match="has no semseg/"):
        score(PARTS, meters(), folder / "depth")


def test_two_files_for_one_prediction_are_refused(folder):
    np.save(folder / "semseg" / "1.npy", label("1")["semseg"])
    with pytest.raises(UserError, match="both exist"):
        score(PARTS, meters(), folder)


@pytest.mark.parametrize(
    "content, message",
    [(b"not numpy", "cannot be read"), (b"", "cannot be read"), (np.array([{}], object), "cannot be read")],
)
def test_damaged_or_pickled_files_are_refused(folder, content, message):
    path = folder / "depth" / "1.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        score(PARTS, meters(), folder)


def test_a_worker_names_the_fault_too(folder):
    np.save(folder / "depth" / "3.npy", np.ones((5, 8), np.float32))
    with pytest.raises(UserError, match="depth for image 3 is 5 x 8, the label is 6 x 8"):
        score(PARTS, meters(), folder, workers=2)
