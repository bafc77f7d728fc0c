"""The low-rank experts of one MLoRE module in three forms: one by one, as one wide expert, and merged.

    training     experts forward and backward, gates, features and weights: one by one (two convolutions each, as the
                 equations have them) and wide (one 3x3 and one 1x1 with the gates between), which is how it trains
    evaluation   all paths of the module forward, one image at a time: one by one, wide, and merged into one 3x3
                 convolution per image and task, the merging included, which is how it predicts

The sizes are those of PASCAL-Context with ViT-L unless said. The contenders' results are compared first.

Legend: N images x tasks, C channels, X = T C, h x w grid, E experts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.machine import device_name, versions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fgmoe_dist.decoders.parts.mlore_module import LowRankBank, MLoREModule

AGREEMENT = {"fp32": 1e-4, "bf16": 5e-2}  # of contenders' results, relative to their norm
SIZES = {"images": 2, "tasks": 5, "channels": 452, "top_k": 9, "rounds": 5}
RANKS, GRID, OWN_RANK = list(range(16, 129, 8)), [32, 32], 72


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, usual in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=usual, metavar="N", help=f"default {usual}")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, metavar="R", help="of the experts")
    parser.add_argument("--grid", type=int, nargs=2, default=GRID, metavar=("H", "W"), help="cells (default 32 32)")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="default fp32")


def run(args: argparse.Namespace) -> dict[str, Any]:
    sizes = {name: getattr(args, name) for name in (*SIZES, "ranks", "grid")}
    for name, value in sizes.items():
        if min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: has to be 1 or more")
    if args.top_k > len(args.ranks):
        raise UserError(f"--top-k {args.top_k} is more than the {len(args.ranks)} experts of --ranks")
    import torch

    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: else the three ways differ by more than rounding
    points = [_measure(args, dtype) for dtype in args.dtype]
    machine = {"device": device_name(), "threads": torch.get_num_threads(), "versions": versions("torch")}
    return {"machine": machine, **sizes, "points": points}


def _measure(args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    from fgmoe_dist.benches.timing import in_turn, medians

    found: dict[str, Any] = {"dtype": dtype}
    for stage, contenders in _contenders(args, dtype).items():
        difference = _check(contenders, dtype)
        turns = {name: partial(_seconds, contender) for name, contender in contenders.items()}
        rounds = in_turn(turns, args.rounds)
        seconds = medians(rounds)
        ratio = {name: seconds["one by one"] / value for name, value in seconds.items()}
        found[stage] = {"seconds": seconds, "rounds_seconds": rounds, "times_faster": ratio, "difference": difference}
        told = ", ".join(
            f"{name} {1000 * value:.2f} ms ({ratio[name]:.2f} times as fast)" for name, value in seconds.items()
        )
        print(f"{stage}, {dtype}: {told}", flush=True)
    return found


def _contenders(args: argparse.Namespace, dtype: str) -> dict[str, dict[str, Callable[[], list[Tensor]]]]:
    """By stage and name: what to time, which answers with results to compare."""
    import torch

    from fgmoe_dist.precision import PRECISIONS

    torch.manual_seed(0)
    place = {"dtype": PRECISIONS[dtype], "device": "cuda" if torch.cuda.is_available() else "cpu"}
    module = _module(args).to(**place)
    z_BXhw = torch.randn(args.images, args.tasks * args.channels, *args.grid, **place)
    logits_BTE, mix_BT = torch.randn(args.images, args.tasks, len(args.ranks)), torch.randn(args.images, args.tasks)
    gate_BTE, mix_BT = module.router.gates(logits_BTE).to(**place), mix_BT.to(**place)
    z_NChw, gate_NE = z_BXhw.unflatten(1, (args.tasks, -1)).flatten(0, 1), gate_BTE.flatten(0, 1)
    module.eval()
    one = (z_BXhw[:1], gate_BTE[:1], mix_BT[:1])
    each = partial(_experts_one_by_one, module.bank, args.ranks)
    return {
        "training": {
            "one by one": partial(_train, module.bank, each, z_NChw, gate_NE),
            "wide": partial(_train, module.bank, module.bank, z_NChw, gate_NE),
        },
        "evaluation": {
            "one by one": partial(_predict, partial(_module_one_by_one, module, each), *one),
            "wide": partial(_predict, module.paths, *one),
            "merged": partial(_predict, module.merged, *one),
        },
    }


def _module(args: argparse.Namespace) -> MLoREModule:
    from fgmoe_dist.decoders.parts.mlore_module import LowRankBank, MLoREModule, Router

    router = Router(args.tasks, args.channels, math.prod(args.grid), len(args.ranks), args.top_k, False, 0.0)
    return MLoREModule(args.tasks, args.channels, OWN_RANK, LowRankBank(args.channels, args.ranks), router, args.tasks)


def _experts_one_by_one(bank: LowRankBank, ranks: list[int], z_NChw: Tensor, gate_NE: Tensor) -> Tensor:
    from torch.nn import functional as F

    y_NChw, first = 0.0, 0
    for expert, rank in enumerate(ranks):
        rows = slice(first, first + rank)
        low = F.conv2d(z_NChw, bank.w_in_RC33[rows], bank.b_in_R[rows], padding=1)
        one_NChw = F.conv2d(low, bank.w_out_CR[:, rows, None, None], bank.b_out_EC[expert])
        y_NChw, first = y_NChw + gate_NE[:, expert, None, None, None] * one_NChw, first + rank
    return y_NChw


def _module_one_by_one(module: MLoREModule, experts: Callable, z: Tensor, gate: Tensor, mix: Tensor) -> Tensor:
    z_NChw = z.unflatten(1, (module.tasks, -1)).flatten(0, 1)
    own = module.up(module.down(z)).unflatten(1, (module.tasks, -1)) * mix[..., None, None, None]
    y = module.expert_norm(experts(z_NChw, gate.flatten(0, 1)).view_as(z))
    return y + own.flatten(1, 2) + module.generic(z_NChw).view_as(z)


def _train(bank: LowRankBank, experts: Callable, z_NChw: Tensor, gate_NE: Tensor) -> list[Tensor]:
    z_NChw, gate_NE = z_NChw.detach().requires_grad_(), gate_NE.detach().requires_grad_()
    bank.zero_grad()
    y_NChw = experts(z_NChw, gate_NE)
    y_NChw.backward(z_NChw.detach())
    return [y_NChw.detach(), z_NChw.grad, gate_NE.grad, *(parameter.grad for parameter in bank.parameters())]


def _predict(forward: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    import torch

    with torch.no_grad():
        return [forward(*inputs)]


def _check(contenders: dict[str, Callable[[], list[Tensor]]], dtype: str) -> float:
    """The greatest relative difference of any result from that one by one. RuntimeError where they are not the same."""
    truth = contenders["one by one"]()
    worst = 0.0
    for contender in contenders.values():
        for ours, theirs in zip(contender(), truth):
            worst = max(worst, float((ours.double() - theirs.double()).norm() / theirs.double().norm()))
    if not worst <= AGREEMENT[dtype]:
        raise RuntimeError(f"the contenders differ by {worst:.2g} of their norm, so timing them means nothing")
    return worst


def _seconds(contender: Callable[[], list[Tensor]]) -> float:
    from fgmoe_dist.benches.timing import clock

    device = _device()
    clock(device)
    start = time.perf_counter()
    contender()
    return clock(device) - start


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
