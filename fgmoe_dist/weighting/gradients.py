"""The tasks' gradients at the parameters that several tasks reach, and one gradient in their place.

For methods with `needs_gradients`. Each micro-batch is computed forward once. Its losses are differentiated one by one
down to the shared parameters (`TaskGradients.add`), which leaves no `.grad` and wakes no hook that an engine has on a
parameter; sums are fp32. After the last micro-batch they are averaged over ranks (`average`). The one backward pass
that the engine sees brings every other parameter its own gradient; at the shared ones, hooks put zeros in the place of
what arrives (`substituted`), and the combined gradient in the last micro-batch, so that the engine accumulates, reduces
and clips it like any other.

The decoder's auxiliary losses are no task: their gradient is added as it is.

Legend: T tasks; S = T + 1 sources of gradient, the auxiliary losses last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fgmoe_dist.experts.groups import find_groups, is_expert_parameter


class Copies(NamedTuple):
    """The ranks that hold a parameter: all of them, or of an expert those that hold the same one."""

    group: dist.ProcessGroup | None = None  # None: all ranks
    count: int = 1


def _copies_of(parameter: nn.Parameter, world: int) -> Copies:
    ep_size = parameter.expert_group if is_expert_parameter(parameter) else 1
    return Copies(None, world) if ep_size == 1 else Copies(find_groups(ep_size).copies, world // ep_size)


class TaskGradients:
    """Sums over the micro-batches of a step, and over ranks, in S fp32 numbers for each number of a parameter.

    The gradients at `others` are combined like those at the shared parameters, but have no part in inner products.
    """

    def __init__(self, shared: Sequence[nn.Parameter], tasks: int, others: Sequence[nn.Parameter] = ()):
        self.parameters, self.sources, self.shared = [*shared, *others], tasks + 1, len(shared)
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._copies = [_copies_of(parameter, self.world) for parameter in self.parameters]
        # A buffer for each group of ranks, so that one exchange averages all that the group holds.
        self._buffers: dict[Copies, Tensor] = {}
        self._sums: list[Tensor] = [None] * len(self.parameters)  # [S, ...] of each parameter, views of the buffers
        for copies in dict.fromkeys(self._copies):
            here = [index for index, its in enumerate(self._copies) if its == copies]
            self._place(copies, here)

    def _place(self, copies: Copies, here: list[int]) -> None:
        members = [self.parameters[index] for index in here]
        dtype = torch.promote_types(members[0].dtype, torch.float32)
        sizes = [parameter.numel() for parameter in members]
        buffer = torch.zeros(self.sources, sum(sizes), dtype=dtype, device=members[0].device)
        self._buffers[copies] = buffer
        for index, parameter, part in zip(here, members, buffer.split(sizes, dim=1)):
            self._sums[index] = part.view(self.sources, *parameter.shape)

    def clear(self) -> None:
        for buffer in self._buffers.values():
            buffer.zero_()

    def add(self, losses: Sequence[Tensor], auxiliary: Tensor | None, share: float) -> None:
        """Adds `share` of the gradients of a micro-batch, whose graph stays for the backward pass to come."""
        for source, loss in enumerate([*losses, auxiliary]):
            if loss is None:
                continue
            found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(self._sums, found):
                if gradient is not None:
                    total[source].add_(gradient, alpha=share)

    def average(self) -> None:
        """Means over ranks; a collective.

        For an expert too it is a sum divided by all ranks: each copy has met the tokens of its own ranks alone.
        """
        for copies, buffer in self._buffers.items():
            if copies.count > 1:
                dist.all_reduce(buffer, group=copies.group)
            buffer /= self.world

    def gram(self) -> Tensor:
        """`[T, T]` inner products of the tasks' gradients, float64 on the CPU, all experts included; a collective."""
        tasks, copies_of_shared = self.sources - 1, self._copies[: self.shared]
        everywhere, spread = torch.zeros(2, tasks, tasks, dtype=torch.float64, device=self.parameters[0].device)
        for copies, total in zip(copies_of_shared, self._sums):
            rows = total[:tasks].reshape(tasks, -1).double()
            if copies.count == self.world:
                everywhere += rows @ rows.T
            else:
                spread += rows @ rows.T / copies.count
        if any(copies.count < self.world for copies in copies_of_shared):
            dist.all_reduce(spread)
        return (everywhere + spread).cpu()

    def combine(self, coefficients: Sequence[float]) -> list[Tensor]:
        """`sum_t c_t g_t` and the auxiliary gradient, for each parameter, as a rank has to hand it to its engine.

        An engine adds up the copies of an expert and divides by all ranks, so that each copy has to bring more.
        """
        factors = torch.tensor([*coefficients, 1.0], dtype=torch.float64)
        return [
            torch.tensordot(factors.to(total), total, dims=1) * (self.world / copies.count)
            for copies, total in zip(self._copies, self._sums)
        ]


class FeatureGradients:
    """The same at one feature that every task reads, for a step of one micro-batch.

    Inner products are of the whole batch's feature: those of each image's part, added up over images and ranks.
    """

    def __init__(self, feature: Tensor, losses_T: Sequence[Tensor]):
        found = (torch.autograd.grad(loss, feature, retain_graph=True, allow_unused=True)[0] for loss in losses_T)
        self.feature = feature
        self.gradients_T = [torch.zeros_like(feature) if gradient is None else gradient for gradient in found]

    def gram(self) -> Tensor:
        """`[T, T]` inner products, float64 on the CPU; a collective."""
        rows = torch.stack([gradient.flatten() for gradient in self.gradients_T]).double()
        gram_TT = rows @ rows.T
        if dist.is_initialized():
            dist.all_reduce(gram_TT)
            gram_TT /= dist.get_world_size() ** 2  # a rank's loss is its share of the mean over ranks
        return gram_TT.cpu()

    @contextlib.contextmanager
    def weighed(self, coefficients_T: Sequence[float]) -> Iterator[None]:
        """In a backward pass within, sum_t c_t g_t goes on from the feature, and what else arrives as it is."""
        changes = [(c - 1) * gradient for c, gradient in zip(coefficients_T, self.gradients_T)]
        handle = self.feature.register_hook(lambda arriving: arriving + sum(changes))
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def substituted(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor] | None) -> Iterator[None]:
    """In a backward pass within, `parameters` get `gradients` in place of what would arrive; None: zeros."""

    def put(gradient: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda arriving: torch.zeros_like(arriving) if gradient is None else gradient.to(arriving.dtype)

    handles = [p.register_hook(put(g)) for p, g in zip(parameters, gradients or [None] * len(parameters))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
