"""What every backend of the routed experts shares: where the experts live, their names, and the protocol.

The protocol has three steps, so that the block can compute what is local while tokens travel:

    journey = routed.dispatch(x_TNC, images)   route the tokens of so many images, send them out
    routed.compute(journey)                    receive, run the local experts, send the sums back
    y_TNC = routed.combine(journey)            receive the sums
    journey.routing                            gates and loads (`Routing`)

Legend: T tasks, N tokens a task, C channels, E routed experts a task, K selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, NamedTuple, Optional

import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import Tensor, nn

from fgmoe_dist.experts.dispatch import Route, Started
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.routers import Routing
from fgmoe_dist.experts.settings import Experts


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


class RoutedExperts(MoE):
    """What the backends share: placement in DeepSpeed's expert groups, and the names of the local experts."""

    def __init__(self, tasks: int, channels: int, config: Experts, ep_size: int, block: int, seed: int):
        nn.Module.__init__(self)  # not MoE's: its one gate over one task's experts is what we replace
        self.tasks, self.channels, self.config, self.block, self.seed = tasks, channels, config, block, seed
        self.kind, self.num_experts, self.ep_size = KINDS[config.kind], config.routed, ep_size
        self.num_local_experts = config.routed // ep_size
        self.expert_group_name = f"ep_size_{ep_size}"
        self.enable_expert_tensor_parallelism = False
        self.use_residual = False
        # Whole copies get theirs from the engine: building a model that only predicts is no collective.
        if ep_size > 1 and dist.is_initialized():
            self._create_process_groups()

    def _create_process_groups(self, use_data_before_expert_parallel_: bool = False) -> None:
        if self.expert_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )

    @property
    def group(self) -> dist.ProcessGroup:
        return groups._get_expert_parallel_group(self.expert_group_name)

    @property
    def ep_rank(self) -> int:
        return dist.get_rank(self.group) if self.ep_size > 1 else 0

    def local_experts(self, task: Optional[int]) -> Iterator[tuple[Optional[int], int]]:
        """(task, expert) of the experts of `task` that live here: a contiguous share of every task's.

        None stands for all tasks: the experts of a bank that they share.
        """
        first = self.ep_rank * self.num_local_experts
        return ((task, expert) for expert in range(first, first + self.num_local_experts))

    def initial(self, task: Optional[int], expert: int) -> tuple:
        """The identity from which an expert's first weights are drawn."""
        return self.seed, "block", self.block, task, expert

    def logical_experts(self) -> Iterator[LogicalExpert]:
        """Every weight of every expert that lives here."""
        raise NotImplementedError

    def dispatch(self, x_TNC: Tensor, images: int = 1) -> Journey:
        raise NotImplementedError

    def kernel(self) -> str:
        """Which kernel computes them and why, for a log; UserError if it cannot here."""
        return f"experts.backend {self.config.backend}: its own loop over experts"

    def compute(self, journey: Journey) -> None:
        pass

    def combine(self, journey: Journey) -> Tensor:
        return journey.y_TNC
