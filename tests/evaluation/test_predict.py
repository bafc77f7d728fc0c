from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fgmoe_dist.evaluation.predict import predict_image
from fgmoe_dist.tasks.depth import Depth
from fgmoe_dist.tasks.normals import Normals
from fgmoe_dist.tasks.sal import Saliency
from fgmoe_dist.tasks.semseg import Semseg


class Mirror:
    """A network whose predictions are its input: what comes back must lie where the photograph has it."""

    encoder = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tasks = [Semseg("semseg", ["a", "b"]), Depth(), Normals(), Saliency()]

    def parameters(self):
        return iter([torch.zeros(1)])

    def predict(self, image_B3HW):
        image_HWC = ((image_B3HW[0] + 1) / 2).movedim(0, -1).numpy()
        return {
            "semseg": [np.uint8(image_HWC[..., 0] > 0.5)],
            "depth": [1 + image_HWC[..., 0]],
            "normals": [image_HWC / np.linalg.norm(image_HWC, axis=2, keepdims=True)],
            "sal": [np.uint8(255 * image_HWC[..., 0])],
        }


@pytest.mark.parametrize("size", [(24, 32), (20, 30), (200, 300), (7, 300), (300, 7), (5, 5)])
def test_predictions_lie_on_their_pixels(size):
    height, width = size
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, width // 2 :] = 220
    found = predict_image(Mirror(), image, (24, 32))
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
        "semseg": ((height, width), "uint8"),
        "depth": ((height, width), "float32"),
        "normals": ((height, width, 3), "float32"),
        "sal": ((height, width), "uint8"),
    }
    # Away from the step itself, whose place the smaller picture knows to one of its pixels only.
    blur = int(np.ceil(1.5 * max(1, height / 24, width / 32)))
    left, right = slice(0, max(1, width // 2 - blur)), slice(min(width - 1, width // 2 + blur), width)
    for side, value in ((left, 40), (right, 220)):
        if width > 2 * blur:
            assert (found["semseg"][:, side] == (value > 127)).all()
            np.testing.assert_allclose(found["depth"][:, side], 1 + value / 255, atol=0.01)
            np.testing.assert_allclose(found["sal"][:, side], value, atol=2)
    np.testing.assert_allclose(np.linalg.norm(found["normals"], axis=2), 1, atol=1e-5)


def test_an_image_of_the_fields_size_is_not_resampled():
    image = np.random.default_rng(0).integers(1, 255, (20, 30, 3), dtype=np.uint8)
    found = predict_image(Mirror(), image, (24, 32))
    np.testing.assert_allclose(found["depth"], 1 + image[..., 0] / 255, atol=1e-5)
