"""What a router promises: one file for each, and one line in `ROUTERS`.

Legend: T tasks, N tokens per task, C channels, E routed experts per task, K selected, S shared experts per task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Optional

from torch import Tensor, nn

from fgmoe_dist.experts.balance import BalanceTerms
from fgmoe_dist.experts.settings import Experts


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a block go, and what balancing needs to know of it."""

    weight_TNK: Tensor  # gates, differentiable; 0 in a dropped slot
    expert_TNK: Tensor  # selected expert of the task, 0..E-1; -1: dropped
    shared_TNS: Optional[Tensor]  # gates of the shared experts; None: ungated
    balance: BalanceTerms


class Router(nn.Module):
    """The routers of all T tasks of a block. They compute in fp32; every rank has the same."""

    def __init__(self, tasks: int, channels: int, config: Experts, ep_size: int = 1):
        super().__init__()
        self.tasks, self.channels, self.config = tasks, channels, config
        self.groups = config.groups or ep_size  # of experts that share a device
        self.register_buffer("closed_TE", None, persistent=False)  # which experts a task may not use; None: none
        self.register_buffer("gone_TE", None, persistent=False)  # which were pruned

    def close(self, closed_TE: Optional[Tensor]) -> None:
        """From now on a task uses no expert where `closed_TE` is true."""
        self.closed_TE = closed_TE

    def prune(self, gone_TE: Optional[Tensor]) -> None:
        """From now on no token goes to an expert where `gone_TE` is true; its logit stays in the others' softmax.

        So an expert that no token has chosen can go, and nothing changes.
        """
        self.gone_TE = gone_TE

    def forward(self, x_TNC: Tensor, images: int = 1) -> Routing:
        """The tokens are those of `images` images, one after the other; a rank may have none."""
        raise NotImplementedError

    def after_step(self, load_TE: Tensor) -> None:
        """Called after each optimiser step with the slots of all ranks that chose each expert in it."""

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: all."""
        return self.parameters()
