"""Scoring of saved files against scoring in memory, and each kind of bad file named."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.score_files import score
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.semseg import Semseg

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


TASKS = [Semseg("semseg", ["a", "b", "c"]), Depth(), Normals()]


@pytest.fixture
def folder(tmp_path):
    """Predictions of images 1, 2, 3: the next image's labels, so that they are wrong but valid."""
    for task in TASKS:
        (tmp_path / task.name).mkdir()
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
    scored = score(PARTS, TASKS, folder, workers)
    expected = {task.name: task.meter() for task in TASKS}
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


def test_a_missing_folder_and_a_missing_file_are_named(folder):
    (folder / "depth" / "2.npy").unlink()
    with pytest.raises(UserError, match=r"depth/2.png or .npy is missing"):
        score(PARTS, TASKS, folder)
    with pytest.raises(UserError, match="has no semseg/"):
        score(PARTS, TASKS, folder / "depth")


def test_a_worker_names_the_fault_too(folder):
    np.save(folder / "depth" / "3.npy", np.ones((5, 8), np.float32))
    with pytest.raises(UserError, match="depth for image 3 is 5 x 8, the label is 6 x 8"):
        score(PARTS, TASKS, folder, workers=2)
