"""How one rank computes its routed experts: interchangeable kernels behind one signature.

    kernel(x_MC, weight_MK, expert_MK, bank) -> y_MC,    y_m = sum_k weight_mk * E_{expert_mk}(x_m)

`bank` is the `Weights` of a kind of expert (experts/kinds/), whose formula E is. A slot whose expert is -1 is empty.
Every parameter of the bank gets a gradient, zero where no row came, because a collective waits for it on the other
ranks. With no rows at all the graph is the same, because ZeRO 2 sums gradients in the order in which backward brings
them, which must be that of the other ranks.

`reference` computes every kind of expert; a fast kernel is a file here and a line in `KERNELS` for each kind that it
computes.

Legend: M rows on this rank, C channels, K slots per row, E experts on this rank, H hidden size of one.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Callable, Mapping, NamedTuple, Optional

import torch
from torch import Tensor

from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.kernels.cpu import cpu
from fgmoe_dist.experts.kernels.fitness import (
    Place,
    Unfit,
    fits_anywhere,
    needs_a_cpu,
    needs_cuda,
    needs_whole_16_bytes,
)
from fgmoe_dist.experts.kernels.grouped import grouped
from fgmoe_dist.experts.kernels.reference import reference
from fgmoe_dist.experts.kernels.wide import wide
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.kinds.ffn import FFNWeights

Function = Callable[[Tensor, Tensor, Tensor, NamedTuple], Tensor]


class Kernel(NamedTuple):
    """A fast kernel of one kind of expert."""

    compute: Function
    unfit: Unfit


def _triton(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: FFNWeights) -> Tensor:
    from fgmoe_dist.experts.kernels.triton import fused  # wants a package that not everyone has

    return fused(x_MC, weight_MK, expert_MK, bank)


# By kind of expert and name.
KERNELS: dict[tuple[str, str], Kernel] = {
    ("ffn", "cpu"): Kernel(cpu, needs_a_cpu),
    ("ffn", "grouped"): Kernel(grouped, needs_whole_16_bytes),
    ("ffn", "triton"): Kernel(_triton, needs_cuda),
    ("lora", "wide"): Kernel(wide, fits_anywhere),
    ("rank_one", "wide"): Kernel(wide, fits_anywhere),
}
REFERENCE, AUTO = "reference", "auto"
# Hidden units of all experts of a rank together beyond which gathering each expert's rows was faster on two CPU cores:
# `wide` ran in 0.6 of the time of `reference` with 256, and in 1.7 times its time with 1024 (k = 4 of 16 experts).
WIDEST = 512
# By device, the fastest first: as measured by `fgmoe bench moe`, docs/experts.md.
FASTEST = {"cpu": ("cpu", "wide"), "cuda": ("triton", "grouped", "wide")}


def kernel_names(kind: Optional[str] = None) -> list[str]:
    """Of the kernels that compute experts of `kind`; None: of any."""
    fast = [name for served, name in KERNELS if kind in (None, served)]
    return list(dict.fromkeys([REFERENCE, *fast]))


def find_kernel(kind: str, name: str) -> Function:
    """The kernel itself."""
    return partial(reference, KINDS[kind].forward) if name == REFERENCE else KERNELS[kind, name].compute


def unfit(kind: str, name: str, place: Place) -> Optional[str]:
    """Why the kernel `name` cannot compute experts of `kind` there, and what to change; None: it can."""
    if name in (AUTO, REFERENCE):
        return None
    if (kind, name) not in KERNELS:
        return f"computes no {kind} experts; take {' or '.join(kernel_names(kind))}"
    return KERNELS[kind, name].unfit(place)


def automatic(kind: str, place: Place) -> str:
    """What `auto` stands for."""
    if place.precision == "fp64":  # it is the oracle's answer that is wanted
        return REFERENCE
    for name in FASTEST.get(place.device, ()):
        with contextlib.suppress(UserError):  # of a kernel whose package is not installed
            if unfit(kind, name, place) is None and not (name == "wide" and _beyond_wide(place)):
                return name
    return REFERENCE


def _beyond_wide(place: Place) -> bool:
    return place.experts * place.widths["experts.hidden"] > WIDEST


def choose_kernel(kind: str, name: str, x_MC: Tensor, bank: NamedTuple) -> str:
    """Resolves `auto` by device, precision and shape.

    Raises:
        UserError: a kernel that cannot compute these experts on this device.
    """
    place = _place(x_MC, bank)
    if name == AUTO:
        return automatic(kind, place)
    if reason := unfit(kind, name, place):
        raise UserError(f"experts.kernel={name} {reason}, or set experts.kernel=auto")
    return name


def explain_kernel(kind: str, name: str, bank: NamedTuple) -> str:
    """One line for a run's log: which kernel `experts.kernel: <name>` stands for on this rank, and for what."""
    experts, channels, hidden = bank[0].shape
    chosen = choose_kernel(kind, name, bank[0], bank)  # tokens come in the weights' precision, on their device
    where = f"{str(bank[0].dtype).removeprefix('torch.')} on {bank[0].device}"
    return f"experts.kernel {name}: {chosen} for {experts} experts of {channels} x {hidden} a rank, {where}"


def widths_of(channels: int, hidden: int) -> Mapping[str, int]:
    """The widths of a fine expert's rows, by the setting that decides each."""
    return {"decoder.channels": channels, "experts.hidden": hidden}


_SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _place(x_MC: Tensor, bank: NamedTuple) -> Place:
    return Place(x_MC.device.type, _SHORT[x_MC.dtype], widths_of(*bank[0].shape[1:]), len(bank[0]))
