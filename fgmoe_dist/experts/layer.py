"""The routed experts of a block, in the three backends a configuration can name.

All three are DeepSpeed `MoE` layers, since that is how its engine recognises experts. They share one protocol,
in three steps, so that the block can compute what is local while tokens travel:

    journey = routed.dispatch(x_TNC, images)   route the tokens of so many images, send them out
    routed.compute(journey)                    receive, run the local experts, send the sums back
    y_TNC = routed.combine(journey)            receive the sums
    journey.routing                            gates and loads (`Routing`)

Legend: T tasks, N tokens a task, C channels, E routed experts a task, K selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple, Optional

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.experts.bank import WEIGHTS, ExpertBank, initial_expert, mark_expert_parameter
from fgmoe_dist.experts.dispatch import Departed, Route, combine, plan_route, start_exchange, wait_exchange
from fgmoe_dist.experts.kernels import KERNELS, choose_kernel, explain_kernel
from fgmoe_dist.experts.router import BalanceTerms, Routers, Routing
from fgmoe_dist.experts.settings import Experts


class LogicalExpert(NamedTuple):
    """One expert's weight as a checkpoint names it, and where this rank keeps it."""

    task: int
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
    departed: Optional[Departed] = None


class RoutedExperts(MoE):
    """What the backends share: placement in DeepSpeed's expert groups, and the names of the local experts."""

    def __init__(self, tasks: int, channels: int, config: Experts, ep_size: int, block: int, seed: int):
        nn.Module.__init__(self)  # not MoE's: its one gate over one task's experts is what we replace
        self.tasks, self.channels, self.config, self.block, self.seed = tasks, channels, config, block, seed
        self.num_experts, self.ep_size = config.routed, ep_size
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

    def local_experts(self, task: int) -> Iterator[tuple[int, int]]:
        """(task, expert) of the experts of `task` that live here: a contiguous share of every task's."""
        first = self.ep_rank * self.num_local_experts
        return ((task, expert) for expert in range(first, first + self.num_local_experts))

    def initial(self, task: int, expert: int) -> tuple:
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


class FusedExperts(RoutedExperts):
    """T routers over one bank of T x E experts: one all-to-all out and one back, whatever T."""

    def __init__(self, *args):
        super().__init__(*args)
        self.routers = Routers(self.tasks, self.channels, self.config, self.ep_size)
        self._here = [place for task in range(self.tasks) for place in self.local_experts(task)]
        self.bank = ExpertBank(
            self.channels,
            self.config.fine_hidden,
            [self.initial(*place) for place in self._here],
            self.expert_group_name,
        )

    def logical_experts(self) -> Iterator[LogicalExpert]:
        for weight in WEIGHTS:
            for index, (task, expert) in enumerate(self._here):
                yield LogicalExpert(task, expert, weight, getattr(self.bank, weight), index)

    def kernel(self) -> str:
        return explain_kernel(self.config.kernel, self.bank.weights)

    def dispatch(self, x_TNC: Tensor, images: int = 1) -> Journey:
        routing = self.routers(x_TNC, images)
        local, device = self.num_local_experts, x_TNC.device
        # Index in the bank of the rank that holds the expert: that rank's experts of task 0, then of task 1, ...
        index_TNK = routing.expert_TNK % local + local * torch.arange(self.tasks, device=device)[:, None, None]
        index_TNK = index_TNK.where(routing.expert_TNK >= 0, -1)
        x_NC, weight_NK, index_NK = (t.flatten(0, 1) for t in (x_TNC, routing.weight_TNK, index_TNK))
        if self.ep_size == 1:
            return Journey(routing, y_TNC=self._run_experts(x_NC, weight_NK, index_NK).view_as(x_TNC))
        owner_NK = (routing.expert_TNK // local).flatten(0, 1)  # -1 stays -1
        route, rows = plan_route(x_NC, weight_NK, index_NK, owner_NK, self.group)
        return Journey(routing, route=route, departed=start_exchange(route, *rows))

    def compute(self, journey: Journey) -> None:
        if journey.route is not None:
            sums = self._run_experts(*wait_exchange(journey.departed))
            journey.departed = start_exchange(journey.route, sums, back=True)

    def combine(self, journey: Journey) -> Tensor:
        if journey.route is None:
            return journey.y_TNC
        (sums_MC,) = wait_exchange(journey.departed)
        return combine(journey.route, sums_MC).view(self.tasks, -1, self.channels)

    def _run_experts(self, x_MC: Tensor, weight_MK: Tensor, index_MK: Tensor) -> Tensor:
        kernel = KERNELS[choose_kernel(self.config.kernel, x_MC, self.bank.weights)]
        return kernel(x_MC, weight_MK, index_MK, self.bank.weights)


class FineExpert(nn.Module):
    """One fine expert as the module that stock layers hold."""

    def __init__(self, channels: int, hidden: int, *identity: object):
        super().__init__()
        for name, value in initial_expert(channels, hidden, *identity).items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(x @ self.w_in_ECH + self.b_in_EH)
        return hidden @ self.w_out_EHC + self.b_out_EC


class StockExperts(RoutedExperts):
    """A library's own layer for each task, each with its own gate, dispatch and two all-to-alls."""

    def __init__(self, *args):
        super().__init__(*args)
        routers = Routers(self.tasks, self.channels, self.config)
        with torch.random.fork_rng(devices=[]):  # what a library draws and we overwrite must not shift later draws
            self.layers = nn.ModuleList(self._create_layer(task) for task in range(self.tasks))
        with torch.no_grad():  # the same first gates as the fused backend's
            for gate, weight_CE in zip(self._gates(), routers.weight_TCE):
                gate.weight.copy_(weight_CE.T)
        for logical in self.logical_experts():
            mark_expert_parameter(logical.parameter, self.expert_group_name)

    def _fine_expert(self, task: int, expert: int) -> FineExpert:
        return FineExpert(self.channels, self.config.fine_hidden, *self.initial(task, expert))

    def logical_experts(self) -> Iterator[LogicalExpert]:
        for task, layer in enumerate(self.layers):
            for (_, expert), module in zip(self.local_experts(task), self._experts(layer)):
                for weight in WEIGHTS:
                    yield LogicalExpert(task, expert, weight, getattr(module, weight), None)

    def dispatch(self, x_TNC: Tensor, images: int = 1) -> Journey:
        y_TNC = torch.stack([self._run_layer(layer, x_NC) for layer, x_NC in zip(self.layers, x_TNC)])
        weight_TCE = torch.stack([gate.weight.T for gate in self._gates()])
        routing = route_as_stock(x_TNC, weight_TCE, self.config, self._dropped(x_TNC.shape[1]))
        # Stock gates divide by the sum of the kept scores where k > 1, and never where k = 1.
        if self.config.renormalise != (self.config.top_k > 1):
            kept_TN1 = routing.weight_TNK.sum(-1, keepdim=True).to(y_TNC.dtype)
            y_TNC = y_TNC / kept_TN1 if self.config.renormalise else y_TNC * kept_TN1
        return Journey(routing, y_TNC=y_TNC)

    def _dropped(self, tokens: int) -> Optional[Tensor]:
        """Slots of these tokens that each task's layer dropped just now, `[T]`; None: it never drops."""
        return None


def route_as_stock(x_TNC: Tensor, weight_TCE: Tensor, config: Experts, dropped_T: Optional[Tensor] = None) -> Routing:
    """Gates and loads recomputed from the stock gates' weights, for balance losses that mean the same everywhere."""
    logits_TNE = torch.bmm(x_TNC.float(), weight_TCE.float())
    score_TNE = logits_TNE.softmax(-1)
    weight_TNK, expert_TNK = score_TNE.topk(config.top_k, dim=-1)
    return Routing(weight_TNK, expert_TNK, None, BalanceTerms.of(logits_TNE, score_TNE, expert_TNK, dropped_T))


class DeepSpeedExperts(StockExperts):
    """`deepspeed.moe.layer.MoE`, dropless."""

    def _create_layer(self, task: int) -> MoE:
        layer = MoE(
            self.channels,
            FineExpert(self.channels, self.config.fine_hidden),
            num_experts=self.num_experts,
            ep_size=self.ep_size,
            k=self.config.top_k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        # Its experts are deep copies of one; give each its own weights.
        for own, (_, expert) in zip(self._experts(layer), self.local_experts(task)):
            own.load_state_dict(self._fine_expert(task, expert).state_dict())
        return layer

    @staticmethod
    def _experts(layer: MoE) -> nn.ModuleList:
        return layer.deepspeed_moe.experts.deepspeed_experts

    def _gates(self) -> list[nn.Linear]:
        return [layer.deepspeed_moe.gate.wg for layer in self.layers]

    def _run_layer(self, layer: MoE, x_NC: Tensor) -> Tensor:
        return layer(x_NC)[0]


class FairscaleExperts(StockExperts):
    """`fairscale.nn.moe.MOELayer` with its top-2 gate.

    What its users know and its peers must: it draws the second expert at random, and drops tokens beyond 2 N / E
    an expert. Outside training the draw is seeded here, so that evaluation repeats.
    """

    def _create_layer(self, task: int) -> nn.Module:
        from fairscale.nn.moe import MOELayer, Top2Gate

        self._create_process_groups()  # it asks for its group at once, whole or not
        experts = nn.ModuleList(self._fine_expert(*place) for place in self.local_experts(task))
        gate = Top2Gate(self.channels, self.num_experts)
        gate.register_forward_hook(_note_kept)
        return MOELayer(gate, experts, group=self.group)

    def _dropped(self, tokens: int) -> Tensor:
        return torch.stack([2 * tokens - layer.gate.kept_N[:tokens].sum() for layer in self.layers])

    @staticmethod
    def _experts(layer: nn.Module) -> nn.ModuleList:
        return layer.experts

    def _gates(self) -> list[nn.Linear]:
        return [layer.gate.wg for layer in self.layers]

    def _run_layer(self, layer: nn.Module, x_NC: Tensor) -> Tensor:
        tokens = len(x_NC)
        x_NC = F.pad(x_NC, (0, 0, 0, -tokens % self.num_experts))  # it takes multiples of E only,
        x_SNC = x_NC.unflatten(0, (self.num_local_experts, -1))  # and as many sequences S as it has experts
        if self.training:
            return layer(x_SNC).flatten(0, 1)[:tokens]
        with torch.random.fork_rng(devices=[x_NC.device] if x_NC.is_cuda else []):
            torch.manual_seed(self.seed)
            return layer(x_SNC).flatten(0, 1)[:tokens]


def _note_kept(gate: nn.Module, _, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keeps how many of a token's two slots found room; the last output is `dispatch_mask[token, expert, place]`."""
    gate.kept_N = output[2].sum((1, 2))


BACKENDS: dict[str, Callable[..., RoutedExperts]] = {
    "fused": FusedExperts,
    "deepspeed": DeepSpeedExperts,
    "fairscale": FairscaleExperts,
}


def create_routed_experts(
    tasks: int, channels: int, config: Experts, ep_size: int, block: int, seed: int
) -> RoutedExperts:
    """The routed experts of block `block`, in the backend that `config.backend` names."""
    return BACKENDS[config.backend](tasks, channels, config, ep_size, block, seed)
