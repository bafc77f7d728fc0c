"""How one rank computes its routed experts: interchangeable kernels behind one signature.

    kernel(x_MC, weight_MK, expert_MK, bank) -> y_MC,    y_m = sum_k weight_mk * FFN_{expert_mk}(x_m)

A slot whose expert is -1 is empty. Every parameter of the bank gets a gradient, zero where no row came, because a
collective waits for it on the other ranks; and with no rows at all the graph is the same, because ZeRO 2 sums gradients
in the order in which backward brings them, which must be that of the other ranks.

Legend: M rows on this rank, C channels, K slots a row, E experts on this rank, H hidden size of one.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.kernels.cpu import cpu
from fgmoe_dist.experts.kernels.grouped import grouped
from fgmoe_dist.experts.kernels.reference import reference


class BankWeights(NamedTuple):
    """The stacked fine experts of a rank, FFN_e(x) = GELU(x w_in_e + b_in_e) w_out_e + b_out_e."""

    w_in_ECH: Tensor
    b_in_EH: Tensor
    w_out_EHC: Tensor
    b_out_EC: Tensor


Kernel = Callable[[Tensor, Tensor, Tensor, BankWeights], Tensor]


def _triton(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: BankWeights) -> Tensor:
    from fgmoe_dist.experts.kernels.triton import fused  # wants a package that not everyone has

    return fused(x_MC, weight_MK, expert_MK, bank)


KERNELS: dict[str, Kernel] = {"reference": reference, "cpu": cpu, "grouped": grouped, "triton": _triton}


def choose_kernel(name: str, x_MC: Tensor, bank: BankWeights) -> str:
    """Resolves `auto` by device, precision and shape.

    Raises:
        UserError: a kernel that cannot compute these experts on this device.
    """
    # grouped_mm takes rows of whole 16 bytes only.
    aligned = all(width * x_MC.element_size() % 16 == 0 for width in bank.w_in_ECH.shape[1:])
    if name == "cpu" and x_MC.device.type != "cpu":
        raise UserError(f"experts.kernel is cpu, but the experts are on {x_MC.device}; set it to auto or grouped")
    if name == "grouped" and not aligned:
        raise UserError(
            f"experts.kernel is grouped, which takes rows of whole 16 bytes, but an expert's are"
            f" {' and '.join(str(width * x_MC.element_size()) for width in bank.w_in_ECH.shape[1:])} bytes;"
            f" change experts.hidden or experts.split, or set experts.kernel to auto"
        )
    if name == "triton":
        from fgmoe_dist.experts.kernels import triton

        triton.check_device(x_MC.device)
    if name != "auto":
        return name
    if x_MC.device.type == "cpu":
        # In float64 it is the oracle's answer that is wanted.
        return "reference" if x_MC.dtype == torch.float64 else "cpu"
    return "grouped" if x_MC.is_cuda and x_MC.dtype == torch.bfloat16 and aligned else "reference"


def explain_kernel(name: str, bank: BankWeights) -> str:
    """One line for a run's log: which kernel `experts.kernel: <name>` stands for on this rank, and for what."""
    experts, channels, hidden = bank.w_in_ECH.shape
    chosen = choose_kernel(name, bank.w_in_ECH, bank)  # tokens come in the weights' precision, on their device
    where = f"{str(bank.w_in_ECH.dtype).removeprefix('torch.')} on {bank.w_in_ECH.device}"
    return f"experts.kernel {name}: {chosen} for {experts} experts of {channels} x {hidden} a rank, {where}"
