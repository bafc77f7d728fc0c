"""Each task's loss against values worked out by hand, labels that are missing, and batches split in any way.

Pixels are laid out as B x K x 1 x N.
"""

from __future__ import annotations

from math import log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.training.losses import task_loss

NAN = float("nan")
INFO = SimpleNamespace(
    tasks=["semseg", "human_parts", "sal", "normals", "depth", "edge"],
    classes={"semseg": ["wall", "floor", "chair"], "human_parts": ["background", "head"]},
    boundary_max_dist=0.011,
)
TASKS = {task.name: task for task in create_tasks(INFO.tasks, INFO, edge_positive_weight=0.9)}


def pixels(*columns: list[float]) -> torch.Tensor:
    """`[1, K, 1, N]` of N pixels with K channels each."""
    return torch.tensor(columns, dtype=torch.float32).T[None, :, None].requires_grad_()


def label(*values: int) -> torch.Tensor:
    return torch.tensor([[values]])


def test_classes_cross_entropy_over_labelled_pixels():
    # Softmax of (ln 2, 0, 0) is (1/2, 1/4, 1/4).
    prediction = pixels([log(2), 0, 0], [log(2), 0, 0], [9, 9, -9])
    assert TASKS["semseg"].loss(prediction, label(0, 2, 255)).item() == pytest.approx((log(2) + log(4)) / 2)


def test_saliency_weighs_each_side_by_the_other_s_share():
    # Three of four labelled pixels are background: weights 1/4 on background, 3/4 on foreground.
    prediction = pixels([0, 0], [0, 0], [0, 0], [log(3), 0], [5, -5])
    expected = (3 * 0.25 * log(2) + 0.75 * log(4)) / 4
    assert TASKS["sal"].loss(prediction, label(0, 0, 0, 1, 255)).item() == pytest.approx(expected)


def test_edges_weigh_the_few_boundary_pixels():
    # sigmoid(ln 3) = 3/4
    prediction = pixels([log(3)], [log(3)], [0.0], [7.0])
    expected = (0.9 * log(4 / 3) + 0.1 * log(4) + 0.1 * log(2)) / 3
    assert TASKS["edge"].loss(prediction, label(1, 0, 0, 255)).item() == pytest.approx(expected)


def test_normals_sum_the_axes_of_unit_vectors():
    prediction = pixels([0, 0, 5], [0, 2, 0], [3, 0, 4], [1, 1, 1])
    target = pixels([0, 0, 1], [1, 0, 0], [0, 0, 1], [NAN] * 3).detach()
    expected = (0 + 2 + 0.6 + 0.2) / 3
    assert TASKS["normals"].loss(prediction, target).item() == pytest.approx(expected)


def test_a_normal_is_invalid_if_any_axis_is():
    target = pixels([0, 0, 1], [0, NAN, 1]).detach()
    assert TASKS["normals"].loss(pixels([0, 0, 1], [1, 0, 0]), target).item() == pytest.approx(0)


def test_depth_is_metres_off_where_there_is_a_depth():
    target = torch.tensor([[[2.0, 1.0, 0.0]]])
    assert TASKS["depth"].loss(pixels([2.5], [0.0], [80.0]), target).item() == pytest.approx(0.75)


def ignored(task, images: int, height: int, width: int) -> torch.Tensor:
    if task.name == "normals":
        return torch.full((images, 3, height, width), NAN)
    return torch.zeros(images, height, width) if task.name == "depth" else torch.full((images, height, width), 255)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_without_any_label_loss_and_gradient_are_zero(name, value):
    task = TASKS[name]
    prediction = torch.full((2, task.channels, 3, 4), value, requires_grad=True)
    loss = task.loss(prediction, ignored(task, 2, 3, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("name", TASKS)
def test_an_invalid_pixel_has_no_gradient_and_spoils_no_other(name):
    task = TASKS[name]
    prediction = torch.randn(1, task.channels, 1, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = ignored(task, 1, 1, 3)
    target[..., 0], target[..., 1] = 1, 0  # saliency weighs one side by the other
    task.loss(prediction, target).backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad[..., 0].abs().sum() > 0
    assert prediction.grad[..., 2].abs().sum() == 0


def random_batch(task, images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Some images with few labels, the first with none."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(images, task.channels, 4, 5, generator=generator)
    if task.name == "normals":
        target = torch.nn.functional.normalize(torch.randn(images, 3, 4, 5, generator=generator), dim=1)
    elif task.name == "depth":
        target = torch.rand(images, 4, 5, generator=generator) * 9
    else:
        target = torch.randint(0, 2, (images, 4, 5), generator=generator)
    missing = torch.rand(images, 4, 5, generator=generator) < torch.rand(images, 1, 1, generator=generator)
    missing[0] = True
    absent = ignored(task, images, 4, 5)
    return prediction, torch.where(missing[:, None] if task.name == "normals" else missing, absent, target)


@pytest.mark.parametrize("name", TASKS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), images=st.integers(2, 6), cut=st.integers(1, 5))
def test_the_mean_over_images_is_the_same_however_a_batch_is_split(name, seed, images, cut):
    task, cut = TASKS[name], min(cut, images - 1)
    prediction, target = random_batch(task, images, seed)
    whole = task_loss(task, prediction, target, "image").item()
    first, second = (
        task_loss(task, prediction[part], target[part], "image") for part in (slice(cut), slice(cut, None))
    )
    assert whole == pytest.approx(((cut * first + (images - cut) * second) / images).item(), rel=1e-5, abs=1e-7)


def test_the_mean_over_a_batch_pools_pixels():
    prediction = torch.zeros(2, 1, 1, 2)
    target = torch.tensor([[[4.0, 0.0]], [[1.0, 1.0]]])  # one valid pixel, two valid pixels
    assert task_loss(TASKS["depth"], prediction, target, "batch").item() == pytest.approx(2.0)
    assert task_loss(TASKS["depth"], prediction, target, "image").item() == pytest.approx(2.5)


def test_predictions_are_what_meters_score():
    third = 1 / sqrt(3)
    cases = {
        "semseg": (pixels([0, 5, 1], [2, 0, 1]), [[1, 0]], np.uint8),
        "human_parts": (pixels([0, 5], [2, 0]), [[1, 0]], np.uint8),
        "depth": (pixels([2.5], [-1.0]), [[2.5, 0]], np.float32),
        "normals": (pixels([2, 2, 2], [0, -3, 0]), [[[third] * 3, [0, -1, 0]]], np.float32),
        "sal": (pixels([0, 0], [0, log(4)]), [[127, 204]], np.uint8),
        "edge": (pixels([0], [log(4)]), [[127, 204]], np.uint8),
    }
    for name, (logits, expected, dtype) in cases.items():
        prediction = TASKS[name].predict(logits.detach()[0])
        assert prediction.dtype == dtype, name
        np.testing.assert_allclose(prediction, expected, atol=1 if name in ("sal", "edge") else 1e-6, err_msg=name)


def test_a_task_without_labels_is_refused():
    with pytest.raises(UserError, match="no labels for sal; set tasks to some of semseg"):
        create_tasks(["semseg", "sal"], SimpleNamespace(tasks=["semseg"], classes=INFO.classes, boundary_max_dist=0.1))
