"""What the backends share that hold another library's layers, one for each task.

Legend: T tasks, N tokens of a task, C channels, E routed experts of a task, K selected, H hidden size of a fine
expert.
"""

from __future__ import annotations

from typing import Iterator, Optional

import torch
from torch import Tensor, nn

from fgmoe_dist.experts.backends.base import Journey, LogicalExpert, Read, RoutedExperts
from fgmoe_dist.experts.balance import BalanceTerms
from fgmoe_dist.experts.groups import mark_expert_parameter
from fgmoe_dist.experts.kinds import KINDS, Kind
from fgmoe_dist.experts.routers import Routing
from fgmoe_dist.experts.routers.token import TokenRouter
from fgmoe_dist.experts.settings import Experts

# What DeepSpeed's and fairscale's layers can do of `Experts`; how they drop tokens is their own affair.
STOCK_ROUTING = {
    "bank": "task", "router": "token", "score": "softmax", "shared_gate": "none", "noise": 0.0, "kernel": "auto",
    "bias_update_rate": 0.0, "max_ranks_per_token": 0, "capacity_factor": 0.0, "condition": "none",
    "noise_kind": "fixed", "closed_share": 0.0, "gate_scale": 1.0,
}  # fmt: skip


class FineExpert(nn.Module):
    """One fine expert as the module that stock layers hold."""

    def __init__(self, kind: Kind, channels: int, hidden: int, *identity: object):
        super().__init__()
        self.kind = kind
        for name, value in kind.initial(channels, hidden, *identity).items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.kind.forward(x, *(getattr(self, name) for name in self.kind.weights))


class StockExperts(RoutedExperts):
    """A library's own layer for each task, each with its own gate, dispatch and two all-to-alls.

    A backend says where a layer keeps its gate, a linear map, and its experts; how to create one; and how to run it.
    """

    gate: str
    experts: str

    def __init__(self, *args):
        super().__init__(*args)
        routers = TokenRouter(self.tasks, self.channels, self.config)
        with torch.random.fork_rng(devices=[]):  # what a library draws and we overwrite must not shift later draws
            self.layers = nn.ModuleList(self._create_layer(task) for task in range(self.tasks))
        with torch.no_grad():  # the same first gates as the fused backend's
            for gate, weight_CE in zip(self._gates(), routers.weight_TCE):
                gate.weight.copy_(weight_CE.T)
        for logical in self.logical_experts():
            mark_expert_parameter(logical.parameter, self.ep_size)

    @classmethod
    def conflicts(cls, config: Experts, precision: str) -> list[str]:
        known = (
            []
            if config.kind not in KINDS or KINDS[config.kind].alone
            else [f"experts.kind={config.kind} needs experts.backend=fused; in stock layers an expert is on its own"]
        )
        return known + [
            f"experts.{key}={value} needs experts.backend=fused; the stock layers have only {wanted}"
            for key, wanted in STOCK_ROUTING.items()
            if (value := getattr(config, key)) != wanted
        ]

    def _create_layer(self, task: int) -> nn.Module:
        """The library's layer over the experts of `task` that live here."""
        raise NotImplementedError

    def run_layer(self, layer: nn.Module, x_NC: Tensor) -> Tensor:
        """`y_NC`, the gated sums of the tokens of one task."""
        raise NotImplementedError

    def _gates(self) -> list[nn.Linear]:
        return [layer.get_submodule(self.gate) for layer in self.layers]

    @classmethod
    def read_routers(cls, read: Read, shape_TCE: tuple[int, ...]) -> Tensor:
        tasks, channels, experts = shape_TCE
        gates = [read(f"layers.{task}.{cls.gate}.weight", (experts, channels)) for task in range(tasks)]
        return torch.stack([gate_EC.T for gate_EC in gates])

    def _fine_expert(self, task: int, expert: int) -> FineExpert:
        return FineExpert(self.kind, self.channels, self.config.fine_hidden, *self.initial(task, expert))

    def logical_experts(self) -> Iterator[LogicalExpert]:
        for task, layer in enumerate(self.layers):
            for (_, expert), module in zip(self.local_experts(task), layer.get_submodule(self.experts)):
                for weight in self.kind.weights:
                    yield LogicalExpert(task, expert, weight, getattr(module, weight), None)

    def dispatch(self, x_TNC: Tensor, images: int = 1) -> Journey:
        y_TNC = torch.stack([self.run_layer(layer, x_NC) for layer, x_NC in zip(self.layers, x_TNC)])
        weight_TCE = torch.stack([gate.weight.T for gate in self._gates()])
        routing = route_as_stock(x_TNC, weight_TCE, self.config, self._dropped(x_TNC.shape[1]))
        # Stock gates divide by the sum of the kept scores where k > 1, and never where k = 1.
        if self.config.renormalise != (self.config.top_k > 1):
            kept_TN1 = routing.weight_TNK.sum(-1, keepdim=True).to(y_TNC.dtype)
            y_TNC = y_TNC / kept_TN1 if self.config.renormalise else y_TNC * kept_TN1
        return Journey(routing, y_TNC=y_TNC)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: the gates, beside the experts."""
        experts = {id(logical.parameter) for logical in self.logical_experts()}
        return (parameter for parameter in self.parameters() if id(parameter) not in experts)

    def _dropped(self, tokens: int) -> Optional[Tensor]:
        """Slots of these tokens that each task's layer dropped just now, `[T]`; None: it never drops."""
        return None


def route_as_stock(x_TNC: Tensor, weight_TCE: Tensor, config: Experts, dropped_T: Optional[Tensor] = None) -> Routing:
    """Gates and loads recomputed from the stock gates' weights, for balance losses that mean the same everywhere."""
    logits_TNE = torch.bmm(x_TNC.float(), weight_TCE.float())
    score_TNE = logits_TNE.softmax(-1)
    weight_TNK, expert_TNK = score_TNE.topk(config.top_k, dim=-1)
    with_entropy = "entropy" in config.balance_losses
    balance = BalanceTerms.of(logits_TNE, score_TNE, expert_TNK, dropped_T, with_entropy=with_entropy)
    return Routing(weight_TNK, expert_TNK, None, balance)
