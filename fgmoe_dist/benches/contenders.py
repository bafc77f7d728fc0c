"""What `fgmoe bench moe` races on one rank: our layer, its kernel alone, stock layers and a dense bound, in turn.

All get the same tokens, and every mixture the same routers and experts. A stock layer is called as its library offers
it, one per task, without what our backends add to it.

Legend: T tasks, N tokens per task on this rank, C channels, K selected, H hidden size of a fine expert, M = T * N.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.benches.timing import clock, in_turn, medians
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.backends import create_routed_experts
from fgmoe_dist.experts.backends.base import RoutedExperts
from fgmoe_dist.experts.backends.fused import FusedExperts
from fgmoe_dist.experts.backends.stock import StockExperts
from fgmoe_dist.experts.kernels import AUTO, choose_kernel, find_kernel, kernel_names
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.precision import PRECISIONS
from fgmoe_dist.progress import track
from fgmoe_dist.ranks import Ranks, barrier

# How far two layers' outputs and gradients may be apart, relative to their norm.
AGREEMENT = {"fp32": 1e-4, "bf16": 3e-2}
WARM_ROUNDS = 2
Module = TypeVar("Module", bound=nn.Module)
SEED = 0


@dataclass(frozen=True)
class Point:
    """One place of the grid; `tokens` are those of one task on one rank."""

    dtype: str
    tasks: int
    experts: int
    tokens: int
    top_k: int
    channels: int
    hidden: int
    kernels: tuple[str, ...]
    fairscale: bool = False


@dataclass
class Contender:
    forward: Callable[[Tensor], Tensor]  # y_TNC of x_TNC
    parameters: list[nn.Parameter]
    after: Callable[[], None] = lambda: None  # behind the backward pass, and timed


class Dense(nn.Module):
    """The bound: for each task one MLP with as many hidden units as k experts have."""

    def __init__(self, tasks: int, channels: int, hidden: int):
        super().__init__()
        self.w_in_TCH = nn.Parameter(torch.randn(tasks, channels, hidden) * channels**-0.5)
        self.b_in_TH = nn.Parameter(torch.zeros(tasks, hidden))
        self.w_out_THC = nn.Parameter(torch.randn(tasks, hidden, channels) * hidden**-0.5)
        self.b_out_TC = nn.Parameter(torch.zeros(tasks, channels))

    def forward(self, x_TNC: Tensor) -> Tensor:
        hidden_TNH = F.gelu(torch.baddbmm(self.b_in_TH[:, None], x_TNC, self.w_in_TCH))
        return torch.baddbmm(self.b_out_TC[:, None], hidden_TNH, self.w_out_THC)


def measure_points(ranks: Ranks, points: list[Point], rounds: int) -> list[dict[str, Any]]:
    """Every point's figures; all ranks of the world walk the same points."""
    shown = track(points, f"{ranks.world} rank(s)", every_s=0) if ranks.is_first else points
    return [measure(point, ranks, rounds) for point in shown]


def measure(point: Point, ranks: Ranks, rounds: int) -> dict[str, Any]:
    """Medians over `rounds` of the slowest rank's seconds, forward and backward; which kernel; bytes on this rank."""
    dtype = PRECISIONS[point.dtype]
    generator = torch.Generator().manual_seed(SEED + ranks.rank)
    x_TNC, dy_TNC = (
        torch.randn(point.tasks, point.tokens, point.channels, generator=generator).to(ranks.device, dtype)
        for _ in range(2)
    )
    x_TNC.requires_grad_()
    contenders, memory = _contenders(point, ranks, x_TNC.detach())
    agreement = _check(point, contenders, x_TNC, dy_TNC)
    turns = {name: partial(_time, contender, x_TNC, dy_TNC) for name, contender in contenders.items()}
    seconds = in_turn(turns, rounds, WARM_ROUNDS)
    slowest = torch.tensor(list(seconds.values()), dtype=torch.float64, device=ranks.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    seconds = dict(zip(seconds, slowest.tolist()))
    return {
        "threads": torch.get_num_threads(),
        "seconds": medians(seconds),
        "rounds_seconds": seconds,
        "largest_relative_difference": agreement,
        "memory": memory,
    }


def _time(contender: Contender, x_TNC: Tensor, dy_TNC: Tensor) -> float:
    _clear(contender, x_TNC)
    clock(x_TNC.device)
    barrier()
    start = time.perf_counter()
    contender.forward(x_TNC).backward(dy_TNC)
    contender.after()
    return clock(x_TNC.device) - start


def _clear(contender: Contender, x_TNC: Tensor) -> None:
    for tensor in (x_TNC, *contender.parameters):
        tensor.grad = None


def _contenders(point: Point, ranks: Ranks, x_TNC: Tensor) -> tuple[dict[str, Contender], dict[str, int]]:
    """By name: dense, kernel:K, fused:K, replicas:K for each kernel K, deepspeed, fairscale."""
    torch.manual_seed(SEED)
    dense = _placed(Dense(point.tasks, point.channels, point.top_k * point.hidden), point, ranks)
    contenders = {"dense": Contender(dense, list(dense.parameters()))}
    memory: dict[str, int] = {}
    for name in point.kernels:
        layer = _layer(point, ranks, ranks.world, "fused", name)
        kernel = choose_kernel("ffn", name, x_TNC, layer.bank.weights)
        memory = memory or _memory(layer, point)
        replica = layer if ranks.world == 1 else _layer(point, ranks, 1, "fused", name)
        contenders[f"kernel:{kernel}"] = _kernel_alone(replica, kernel, x_TNC)
        contenders[f"fused:{kernel}"] = Contender(_through(layer), list(layer.parameters()))
        if ranks.world > 1:
            after = partial(_sum_gradients, list(replica.bank.parameters()))
            contenders[f"replicas:{kernel}"] = Contender(_through(replica), list(replica.parameters()), after)
    for name in ("deepspeed", "fairscale") if point.fairscale else ("deepspeed",):
        layer = _layer(point, ranks, ranks.world, name, "auto")
        contenders[name] = Contender(_stock(layer), list(layer.parameters()))
    return contenders, memory


def _layer(point: Point, ranks: Ranks, ep_size: int, backend: str, kernel: str) -> RoutedExperts:
    # Stock gates divide by the sum of the kept scores, but never a single one.
    config = Experts(
        count=point.experts, split=1, hidden=point.hidden, top_k=point.top_k, renormalise=point.top_k > 1,
        backend=backend, kernel=kernel,
    )  # fmt: skip
    torch.manual_seed(SEED)  # the routers' weights
    layer = create_routed_experts(point.tasks, point.channels, config, ep_size, block=0, seed=SEED)
    return _placed(layer, point, ranks)


def _placed(module: Module, point: Point, ranks: Ranks) -> Module:
    return module.to(ranks.device, PRECISIONS[point.dtype]).train()


def _through(layer: FusedExperts) -> Callable[[Tensor], Tensor]:
    def forward(x_TNC: Tensor) -> Tensor:
        journey = layer.dispatch(x_TNC)
        layer.compute(journey)
        return layer.combine(journey)

    return forward


def _stock(layer: StockExperts) -> Callable[[Tensor], Tensor]:
    return lambda x_TNC: torch.stack([layer.run_layer(own, x_NC) for own, x_NC in zip(layer.layers, x_TNC)])


def _kernel_alone(layer: FusedExperts, kernel: str, x_TNC: Tensor) -> Contender:
    """All experts on this rank, with the gates given: no router, no dispatch."""
    with torch.no_grad():
        routing = layer.routers(x_TNC)
    offset_T11 = layer.num_experts * torch.arange(layer.tasks, device=x_TNC.device)[:, None, None]
    expert_MK = (routing.expert_TNK + offset_T11).flatten(0, 1)
    weight_MK = nn.Parameter(routing.weight_TNK.flatten(0, 1))

    def forward(x_TNC: Tensor) -> Tensor:
        y_MC = find_kernel("ffn", kernel)(x_TNC.flatten(0, 1), weight_MK, expert_MK, layer.bank.weights)
        return y_MC.view_as(x_TNC)

    return Contender(forward, [weight_MK, *layer.bank.parameters()])


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    """What replicas of the experts owe each other, and expert parallelism over all ranks does not."""
    for parameter in parameters:
        dist.all_reduce(parameter.grad)


def _memory(layer: FusedExperts, point: Point) -> dict[str, int]:
    """Bytes on this rank with Adam: weights, two moments, and a copy to update where weights are not fp32."""
    numbers = sum(parameter.numel() for parameter in layer.bank.parameters())
    item = PRECISIONS[point.dtype].itemsize
    return {
        "expert_parameter_bytes": numbers * item,
        "expert_optimizer_bytes": numbers * (8 + (0 if item == 4 else 4)),
        "router_parameter_bytes": layer.routers.weight_TCE.numel() * item,
    }


def _check(point: Point, contenders: dict[str, Contender], x_TNC: Tensor, dy_TNC: Tensor) -> float | None:
    """The largest relative difference from DeepSpeed's layer, of outputs and of gradients of x; all routes are one."""
    results = {}
    for name, contender in contenders.items():
        if name not in ("dense", "fairscale") and not name.startswith("kernel:"):  # fairscale's draws at random
            _clear(contender, x_TNC)
            y_TNC = contender.forward(x_TNC)
            y_TNC.backward(dy_TNC)
            results[name] = torch.stack([y_TNC.detach(), x_TNC.grad]).double()
    truth = results.pop("deepspeed")
    worst = max(float((result - truth).norm() / truth.norm()) for result in results.values())
    worst = torch.tensor(worst, dtype=torch.float64, device=x_TNC.device)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    if not worst <= AGREEMENT[point.dtype]:
        raise RuntimeError(f"{point}: the layers differ by {worst:.2g} of their norm, so timing them means nothing")
    return worst.item()


def check_kernels(kernels: tuple[str, ...]) -> None:
    unknown = [name for name in kernels if name not in (AUTO, *kernel_names("ffn"))]
    if unknown:
        raise UserError(f"--kernels {unknown[0]}: there are auto, {', '.join(kernel_names('ffn'))}")
