"""Losses of predictions on the way: what the trainer adds, under which names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fgmoe_dist.decoders.base import Intermediate, Output
from fgmoe_dist.tasks import Task
from fgmoe_dist.training.losses import task_losses


class Square(Task):
    """Its loss is the mean square over valid pixels, those that are no NaN."""

    name, title, channels = "square", "square", 1

    def loss(self, prediction_BKHW, target):
        valid = target.isfinite()
        return (prediction_BKHW[:, 0] - target)[valid].square().mean()

    predict = meter = column = None


Square.__abstractmethods__ = frozenset()
SIZE = (4, 6)


def given() -> tuple[list[Task], Output, dict[str, torch.Tensor]]:
    """Two tasks, and a label that lacks half of one image."""
    torch.manual_seed(0)
    tasks = [Square("a"), Square("b")]
    labels = {task.name: torch.randn(2, *SIZE) for task in tasks}
    labels["a"][0, :2] = torch.nan
    steps = [
        Intermediate(name, weight, {task.name: torch.randn(2, 1, *size) for task in tasks})
        for name, weight, size in (("coarse", 0.5, (2, 3)), ("fine", 2.0, SIZE))
    ]
    return tasks, Output({task.name: torch.randn(2, 1, *SIZE) for task in tasks}, intermediate=steps), labels


@pytest.mark.parametrize("average", ["image", "batch"])
def test_a_task_s_whole_loss_adds_the_weighed_ones_on_the_way(average):
    tasks, output, labels = given()
    named, whole = task_losses(tasks, output, labels, average)
    assert list(named) == ["a", "b", *(f"loss/{task}/{step}" for task in "ab" for step in ("coarse", "fine"))]

    def by_hand(prediction, target):
        resized = F.interpolate(prediction, SIZE, mode="bilinear", align_corners=False)[:, 0]
        squares = [(r - t)[t.isfinite()].square() for r, t in zip(resized, target)]
        return torch.stack([s.mean() for s in squares]).mean() if average == "image" else torch.cat(squares).mean()

    for task, total in zip("ab", whole):
        last, coarse, fine = named[task], named[f"loss/{task}/coarse"], named[f"loss/{task}/fine"]
        for loss, prediction in (
            (last, output.predictions),
            *zip((coarse, fine), (s.predictions for s in output.intermediate)),
        ):
            torch.testing.assert_close(loss, by_hand(prediction[task], labels[task]))
        torch.testing.assert_close(total, last + 0.5 * coarse + 2 * fine)


def test_without_any_the_whole_loss_is_the_prediction_s():
    tasks, output, labels = given()
    named, whole = task_losses(tasks, Output(output.predictions), labels)
    assert list(named) == ["a", "b"] and all(total is named[task] for task, total in zip("ab", whole))
