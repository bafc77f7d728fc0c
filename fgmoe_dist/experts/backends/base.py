"""What every backend of the routed experts shares: where the experts live, their names, and the protocol.

The protocol has three steps, so that the block can compute what is local while tokens travel:

    journey = routed.dispatch(x_TNC, images)   route the tokens of so many images, send them out
    routed.compute(journey)                    receive, run the local experts, send the sums back
    y_TNC = routed.combine(journey)            receive the sums
    journey.routing                            gates and loads (`Routing`)

Legend: T tasks, N tokens of a task, C channels, E routed experts of a task, K selected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple, Optional

import torch.distributed as dist
from torch import Tensor, nn

from fgmoe_dist.experts import groups
from fgmoe_dist.experts.dispatch import Route, Started
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.routers import Routing
from fgmoe_dist.experts.settings import Experts

# Reads a tensor of a shape by its name within a layer.
Read = Callable[[str, tuple[int, ...]], Tensor]


class LogicalExpert(NamedTuple):
    """One expert's weight as a checkpoint names it, and where this rank keeps it."""

    task: Optional[int]  # None: all tasks share it
    expert: int
    weight: str
    parameter: nn.Parameter
    index: Optional[int]  # along the first dimension of a stacked parameter; None: the whole parameter


@dataclass
class Journey:
    """What one call of a layer has under way."""

    routing: Routing
    y_TNC: Optional[Tensor] = None
    route: Optional[Route] = None
    started: Optional[Started] = None


class RoutedExperts(nn.Module):
    """A block's experts, of which each rank of an expert group holds a share. A backend says how tokens reach them."""

    def __init__(self, tasks: int, channels: int, config: Experts, ep_size: int, block: int, seed: int):
        super().__init__()
        self.tasks, self.channels, self.config, self.block, self.seed = tasks, channels, config, block, seed
        self.kind, self.num_experts, self.ep_size = KINDS[config.kind], config.routed, ep_size
        self.num_local_experts = config.routed // ep_size
        # Whole copies need none until they train: building a model that only predicts is no collective.
        if ep_size > 1 and dist.is_initialized():
            groups.find_groups(ep_size)

    @classmethod
    def conflicts(cls, config: Experts, precision: str) -> list[str]:
        """What of the settings this backend cannot do, one line each; `precision` is fp32 or bf16."""
        return []

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks that hold one copy of the experts together."""
        return groups.find_groups(self.ep_size).exchange

    def active_parameters(self, tasks: int = 1) -> int:
        """Of the routed experts, how many one token of each of so many tasks passes, wherever they live.

        At most so many, where tasks share a bank.
        """
        kind, config, banks = self.kind, self.config, self.config.banks(tasks)
        top_k = min(tasks * config.top_k, banks * config.routed)
        if kind.pairs:  # the second vectors count with what is replicated
            return min(top_k, banks * config.count) * self.channels
        return top_k * sum(math.prod(shape) for shape in kind.shapes(self.channels, self.config.fine_hidden).values())

    def local_experts(self, task: Optional[int]) -> Iterator[tuple[Optional[int], int]]:
        """(task, expert) of the experts of `task` that live here: a contiguous share of every task's.

        None stands for all tasks: the experts of a bank that they share.
        """
        first = groups.ep_rank(self.ep_size) * self.num_local_experts
        return ((task, expert) for expert in range(first, first + self.num_local_experts))

    def initial(self, task: Optional[int], expert: int) -> tuple:
        """The identity from which an expert's first weights are drawn."""
        return self.seed, "block", self.block, task, expert

    def logical_experts(self) -> Iterator[LogicalExpert]:
        """Every weight of every expert that lives here."""
        raise NotImplementedError

    @staticmethod
    def read_routers(read: Read, shape_TCE: tuple[int, ...]) -> Tensor:
        """The routers' `weight_TCE`, from where a checkpoint of this backend keeps them."""
        raise NotImplementedError

    def check_kernel(self) -> str:
        """Which kernel computes the experts and why, as a line for a run's log.

        Raises:
            UserError: the kernel that the configuration names cannot compute them here.
        """
        return f"experts.backend {self.config.backend}: its own loop over experts"

    def dispatch(self, x_TNC: Tensor, images: int = 1) -> Journey:
        raise NotImplementedError

    def compute(self, journey: Journey) -> None:
        pass

    def combine(self, journey: Journey) -> Tensor:
        return journey.y_TNC
