"""Our own backend: one dispatch for the tokens of all tasks.

Legend: T tasks, N tokens of a task, C channels, E routed experts of a bank, O banks, K selected experts, M rows on this
rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Iterator

import torch
from torch import Tensor

from fgmoe_dist.experts.backends.base import Journey, LogicalExpert, Read, RoutedExperts
from fgmoe_dist.experts.bank import ExpertBank, PairBank
from fgmoe_dist.experts.dispatch import combine, plan_route, start_exchange, wait_exchange
from fgmoe_dist.experts.kernels import choose_kernel, explain_kernel, find_kernel
from fgmoe_dist.experts.kernels.reference import by_image
from fgmoe_dist.experts.routers import ROUTERS
from fgmoe_dist.experts.routers.closing import closed_experts
from fgmoe_dist.experts.settings import kept_experts

ROUTER_WEIGHTS = "routers.weight_TCE"  # where this backend keeps its routers; it is what others' checkpoints convert to


class FusedExperts(RoutedExperts):
    """T routers over one bank of T x E experts, or of E that all share: one all-to-all out and one back, whatever T."""

    def __init__(self, *args):
        super().__init__(*args)
        self.routers = ROUTERS[self.config.router](self.tasks, self.channels, self.config, self.ep_size)
        self.routers.close(closed_experts(self.config, self.tasks, self.seed, self.block))
        self._shared = self.config.bank == "shared"
        owners = [None] if self._shared else range(self.tasks)
        kept = kept_experts(self.config, self.block)
        self._here = [
            place for owner in owners for place in self.local_experts(owner)
            if kept is None or place[1] in kept[owner or 0]
        ]  # fmt: skip
        self.register_buffer("place_OE", None if kept is None else self._places(kept), persistent=False)
        if kept is not None:
            self.routers.prune((self.place_OE < 0).expand(self.tasks, -1))
        if self.kind.pairs:
            seconds = self.config.split
            # What is placed, and named in checkpoints, are the first vectors.
            self._here = list(dict.fromkeys((owner, expert // seconds) for owner, expert in self._here))
            identities = [self.initial(*place) for place in self._here]
            self.bank = PairBank(self.kind, self.channels, identities, len(owners), seconds, self.ep_size)
        else:
            identities = [self.initial(*place) for place in self._here]
            self.bank = ExpertBank(self.kind, self.channels, self.config.fine_hidden, identities, self.ep_size)

    def _places(self, kept: Sequence[Sequence[int]]) -> Tensor:
        """Where each expert of O banks lies in the bank of the rank that holds it; -1 where it was pruned."""
        place_OE = torch.full((len(kept), self.num_experts), -1)
        for first in range(0, self.num_experts, self.num_local_experts):
            local = range(first, first + self.num_local_experts)
            for place, (owner, expert) in enumerate((o, e) for o, left in enumerate(kept) for e in local if e in left):
                place_OE[owner, expert] = place
        return place_OE

    def logical_experts(self) -> Iterator[LogicalExpert]:
        if self.kind.pairs:
            for index, (task, first) in enumerate(self._here):
                yield LogicalExpert(task, first, "a_EC", self.bank.a_QC, index)
            return
        for weight in self.kind.weights:
            for index, (task, expert) in enumerate(self._here):
                yield LogicalExpert(task, expert, weight, getattr(self.bank, weight), index)

    @staticmethod
    def read_routers(read: Read, shape_TCE: tuple[int, ...]) -> Tensor:
        return read(ROUTER_WEIGHTS, shape_TCE)

    def check_kernel(self) -> str:
        return explain_kernel(self.config.kind, self.config.kernel, self.bank.weights)

    def dispatch(self, x_TNC: Tensor, images: int = 1) -> Journey:
        routing = self.routers(x_TNC, images)
        local, device = self.num_local_experts, x_TNC.device
        # Index in the bank of the rank that holds the expert: that rank's experts of task 0, then of task 1, ...
        if self.place_OE is not None:
            place_TE = self.place_OE.expand(self.tasks, -1)
            index_TNK = place_TE.gather(1, routing.expert_TNK.clamp(min=0).flatten(1)).view_as(routing.expert_TNK)
        else:
            index_TNK = routing.expert_TNK % local
            if not self._shared:
                index_TNK = index_TNK + local * torch.arange(self.tasks, device=device)[:, None, None]
        index_TNK = index_TNK.where(routing.expert_TNK >= 0, -1)
        x_NC, weight_NK, index_NK = (t.flatten(0, 1) for t in (x_TNC, routing.weight_TNK, index_TNK))
        if self.ep_size == 1:
            return Journey(routing, y_TNC=self._run_experts(x_NC, weight_NK, index_NK).view_as(x_TNC))
        owner_NK = (routing.expert_TNK // local).flatten(0, 1)  # -1 stays -1
        route, rows = plan_route(x_NC, weight_NK, index_NK, owner_NK, self.group)
        return Journey(routing, route=route, started=start_exchange(route, *rows))

    def compute(self, journey: Journey) -> None:
        if journey.route is not None:
            sums = self._run_experts(*wait_exchange(journey.started))
            journey.started = start_exchange(journey.route, sums, back=True)

    def combine(self, journey: Journey) -> Tensor:
        if journey.route is None:
            return journey.y_TNC
        (sums_MC,) = wait_exchange(journey.started)
        return combine(journey.route, sums_MC).view(self.tasks, -1, self.channels)

    def _run_experts(self, x_MC: Tensor, weight_MK: Tensor, index_MK: Tensor) -> Tensor:
        kind, bank = self.config.kind, self.bank.weights
        if self.kind.grid_hw is not None:
            return by_image(self.kind, x_MC, weight_MK, index_MK, bank)
        kernel = find_kernel(kind, choose_kernel(kind, self.config.kernel, x_MC, bank))
        return kernel(x_MC, weight_MK, index_MK, bank)
