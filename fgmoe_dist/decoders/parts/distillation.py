"""Multi-modal distillation (PAD-Net, Xu et al., arXiv 1805.04409): each task's feature asks those of the others.

Legend: B images, C channels, h x w grid, K outputs of a task, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pydantic import Field
from torch import Tensor, nn

from fgmoe_dist.decoders.parts.grid import GridSettings
from fgmoe_dist.decoders.parts.residual import Residual, two_blocks
from fgmoe_dist.tasks import Task


class DistillationSettings(GridSettings):
    prediction_weight: float = Field(
        1.0, ge=0, description="weight of the losses of preliminary predictions, beside each task's last one"
    )


class Preliminary(nn.Module):
    """Each task's own feature, by two residual blocks, and a prediction from it, 1x1, to be supervised."""

    def __init__(self, given: int, channels: int, tasks: Sequence[Task], block: Callable[[int, int], Residual]):
        super().__init__()
        self.names = [task.name for task in tasks]
        self.features = nn.ModuleList(two_blocks(block, given, channels) for _ in tasks)
        self.predict = nn.ModuleList(nn.Conv2d(channels, task.channels, 1) for task in tasks)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those that one task alone trains: the features go to every task."""
        return self.predict.parameters()

    def forward(self, x_T: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """`[B, C, h, w]` for each task, and predictions `[B, K, h, w]`, fp32, from a map for each task."""
        features_T = [feature(x) for feature, x in zip(self.features, x_T)]
        return features_T, {n: p(f).float() for n, p, f in zip(self.names, self.predict, features_T)}


class Distillation(nn.Module):
    """`F_t + sum_{a != t} sigmoid(A_ta * F_a) . (V_ta * F_a)`, A and V 3x3 convolutions of each pair of tasks."""

    def __init__(self, channels: int, tasks: int):
        super().__init__()
        self.messages = nn.ModuleList(nn.ModuleList(Message(channels) for _ in range(tasks - 1)) for _ in range(tasks))

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those that one task alone trains: all, as messages belong to who reads them."""
        return self.parameters()

    def forward(self, features_T: Sequence[Tensor]) -> list[Tensor]:
        distilled_T = []
        for task, (own, messages) in enumerate(zip(features_T, self.messages)):
            others = [other for index, other in enumerate(features_T) if index != task]
            distilled_T.append(own + sum(message(other) for message, other in zip(messages, others)))
        return distilled_T


class Message(nn.Module):
    """`sigmoid(A * x) . (V * x)`."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.Conv2d(channels, channels, 3, padding=1)
        self.value = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.attention(x_BChw).sigmoid() * self.value(x_BChw)
