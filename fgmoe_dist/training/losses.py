"""The tasks' losses of what a decoder gives: of its predictions, and of those on the way to them.

Legend: B images, K outputs of a task, H x W input, h x w any grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fgmoe_dist.decoders.base import Output
from fgmoe_dist.decoders.parts.layers import resize
from fgmoe_dist.tasks import Task


def task_losses(
    tasks: Sequence[Task], output: Output, labels: Mapping[str, Tensor], average: str = "batch"
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The loss of every prediction by the name that it is logged by, and each task's whole loss.

    A task's whole loss is that of its prediction, which is called by the task's name alone, and `weight` times that of
    each intermediate prediction, `loss/<task>/<name>`. `average` is `train.loss_average`.
    """
    last, between, whole = {}, {}, []
    for task in tasks:
        prediction_BKHW, target = output.predictions[task.name], labels[task.name]
        last[task.name] = total = _loss(task, prediction_BKHW, target, average)
        for step in output.intermediate:
            resized_BKHW = resize(step.predictions[task.name], prediction_BKHW.shape[-2:])
            loss = between[f"loss/{task.name}/{step.name}"] = _loss(task, resized_BKHW, target, average)
            total = total + step.weight * loss
        whole.append(total)
    return last | between, whole


def _loss(task: Task, prediction_BKHW: Tensor, target: Tensor, average: str) -> Tensor:
    if average == "batch":
        return task.loss(prediction_BKHW, target)
    images = zip(prediction_BKHW.split(1), target.split(1))
    return torch.stack([task.loss(prediction, label) for prediction, label in images]).mean()
