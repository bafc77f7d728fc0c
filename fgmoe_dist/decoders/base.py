"""What a decoder is: the encoder's levels in, a prediction per task out, and what it wants of the training besides.

A decoder is one file here (or a plug-in's) and one line in `DECODERS`: its settings, chosen by `decoder.kind`, and its
module. Whoever trains, plans, saves or exports it knows this page alone, and never asks whether it has experts.

Legend: B images, C channels, h x w cells of a level's grid, H x W input, K outputs of a task, T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import numpy as np
from torch import Tensor, nn

from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.settings import Section
from fgmoe_dist.tasks import Task


@dataclass(frozen=True)
class Surroundings:
    """What of the rest of the configuration a decoder depends on."""

    image_size: tuple[int, int]
    tasks: tuple[str, ...]
    experts: Experts
    ep_size: int
    precision: str  # fp32 | bf16
    seed: int
    recompute: bool  # activations in the backward pass, where the decoder can


@dataclass(frozen=True)
class Levels:
    """The tapped levels of an encoder: channels, and pixels of the input that a cell stands for each way."""

    channels: Sequence[int]
    strides: Sequence[int]


@dataclass(frozen=True)
class Routed:
    """Routed experts as a plan counts them: in each block T routers over experts that are spread over ranks."""

    blocks: int = 0  # 0: a decoder without any
    tasks: int = 0
    tokens: int = 0  # of an image and task
    channels: int = 0
    experts: Experts = field(default_factory=Experts)

    @property
    def most_ranks(self) -> int:
        """How many ranks can share the experts of a task, at most."""
        return self.experts.routed if self.blocks else 1


class DecoderSettings(Section):
    """The section `decoder` of a configuration. A decoder's own derives from it and fixes `kind`."""

    kind: str
    # Further sections of the configuration that this decoder reads; those that it does not are not shown.
    sections: ClassVar[tuple[str, ...]] = ()

    @property
    def shares_feature(self) -> bool:
        """Whether all tasks' predictions are made from one feature, and from nothing else of the encoder."""
        return False

    def conflicts(self, around: Surroundings) -> list[str]:
        """Contradictions among these settings, and with what is around them, one line each.

        A line names in full every setting that it depends on: where one of them is faulty itself, the line is left out.
        """
        return []

    def routed(self, around: Surroundings) -> Routed:
        """What `fgmoe plan` has to know of experts that a rank shares with others; by default there are none."""
        return Routed()


@dataclass(frozen=True)
class Intermediate:
    """Predictions on the way to the last ones, trained on the same labels: deep supervision.

    name: their losses are logged as `loss/<task>/<name>`.
    weight: of such a loss beside that of the task's last prediction; the sum of both is what the task weighs.
    predictions: `[B, K, h, w]` per task, fp32, of any size: they are resized to the input for their losses alone.
    """

    name: str
    weight: float
    predictions: Mapping[str, Tensor]


@dataclass
class Output:
    """What a forward pass gives: `[B, K, H, W]` per task, and whatever the decoder's auxiliary losses are made of.

    feature: the one that all tasks' predictions are made from, of a decoder that `shares_feature`.
    """

    predictions: dict[str, Tensor]
    terms: Any = None
    intermediate: Sequence[Intermediate] = ()
    feature: Optional[Tensor] = None


@dataclass(frozen=True)
class Auxiliary:
    """What a decoder adds to the tasks' losses of a micro-batch.

    losses: by the name that is logged, (weight, value); added to the total in this order, weight * value each.
    counts: sums over all ranks, added up over the micro-batches of a step; `after_step` and `metrics` get them.
    """

    losses: Mapping[str, tuple[float, Tensor]] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)


class Decoder(nn.Module, ABC):
    """Predicts every task from the encoder's levels.

    Args of every decoder: its settings, the levels, the tasks, and its surroundings. What it draws at random for its
    first weights may depend on nothing else, so that every rank and every layout starts alike.
    """

    Settings: ClassVar[type[DecoderSettings]]

    def __init__(self, settings: DecoderSettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__()
        self.settings, self.tasks, self.size_hw = settings, list(tasks), tuple(around.image_size)

    @abstractmethod
    def forward(self, levels: list[Tensor]) -> Output:
        """Predictions `[B, K, H, W]` at the input's size, fp32, from levels `[B, C_l, h_l, w_l]` of any precision."""

    def auxiliary(self, output: Output) -> Auxiliary:
        """Losses beside the tasks', and counts. May be a collective: every rank calls it once per micro-batch."""
        return Auxiliary()

    def after_step(self, counts: Mapping[str, Tensor]) -> None:
        """What changes besides by gradient, once per optimiser step, alike on every rank."""

    def metrics(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of a step for the log, by name."""
        return {}

    def pictures(self, counts: Mapping[str, Tensor], caption: str) -> dict[str, np.ndarray]:
        """Pictures (uint8 RGB, by name) of the counts since the last evaluation."""
        return {}

    def describe(self) -> list[tuple[str, str]]:
        """Rows for a plan: what this decoder amounts to, after the engine has placed and cast it."""
        return []

    def notes(self) -> list[str]:
        """Lines for a run's log, said once at the start. UserError where the decoder cannot run as it is here."""
        return []

    def parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Modules whose work a plan tells apart, and what it calls them; by default the decoder is one part."""
        return iter(())

    def unroute(self) -> None:
        """Takes out what a plan cannot count without data: experts that tokens are sent to. By default nothing."""

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Replicated parameters of which every task has its own: a head, a router, ..., stacked or not."""
        return iter(())

    def shared_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that the losses of several tasks reach; gradient methods weigh the tasks there."""
        own = {id(parameter) for parameter in self.own_parameters()}
        return [p for p in self.parameters() if p.requires_grad and not is_expert_parameter(p) and id(p) not in own]

    def active_experts(self) -> int:
        """Parameters of the routed experts that one token of one task passes."""
        return 0

    def idle_parameters(self) -> int:
        """Replicated parameters that all tasks share and yet one token of one task does not pass."""
        return 0


def parameter_counts(decoder: Decoder, encoder: nn.Module, ep_size: int) -> dict[str, int]:
    """Parameters of the whole model, over all ranks: `total`, `trained`, `routed`, and `active` for one token.

    A token of one task passes what all tasks share and is not idle for it, its own task's parts, and its own routed
    experts. Parts of different size (heads) count with their mean over tasks.
    """
    tasks = len(decoder.tasks)
    dense = [p for p in decoder.parameters() if not is_expert_parameter(p)]
    replicated = _numbers(encoder.parameters()) + _numbers(dense)
    trained = _numbers(p for p in dense if p.requires_grad)
    routed = ep_size * _numbers(p for p in decoder.parameters() if is_expert_parameter(p))
    own = _numbers(decoder.own_parameters())
    return {
        "total": replicated + routed,
        "trained": trained + routed,
        "routed": routed,
        "active": replicated - decoder.idle_parameters() - own * (tasks - 1) // tasks + decoder.active_experts(),
    }


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
