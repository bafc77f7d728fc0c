"""Expert by expert in cache: gather, multiply, weighted scatter, with a backward of its own.

What costs on a CPU is moving rows and touching fresh memory, not multiplying. So slots are sorted by expert once; an
expert's rows are cut into pieces that fit a core's cache; pieces of similar size are padded to one size and multiplied
as a batch (`bmm`), which spares a dispatch per expert and is the one form of small product that threads and bf16 both
speed up. Workspaces serve all groups, rows never exist for all slots at once: of a slot only its hidden units before
the activation are kept for the backward pass (k x H numbers per token, C for the usual k x H = C), because multiplying
again costs more than reading them back.

Padding repeats the piece's last row with gate 0: it adds nothing, and a non-finite token stays among its own experts.

Legend: kernels/__init__.py; P pieces, G pieces of a group, R rows of a padded piece, S padded slots, in the order of
the pieces; 1 an axis of one number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgmoe_dist.experts.kinds.ffn import FFNWeights

# Rows of a group in bytes and thread: about what a core's own cache holds. Measured: halves and doubles are slower.
GROUP_BYTES = 1 << 20
# Weights of a group are copied together; more than this no longer stay in cache.
MAX_PIECES = 32
# oneDNN compiles a kernel for each shape it has not seen, so reduced precision keeps to few.
ROW_MULTIPLE = {torch.float32: 4, torch.bfloat16: 16, torch.float16: 16}


class Group(NamedTuple):
    """Pieces first..last-1, multiplied together; their slots are contiguous."""

    first: int
    last: int
    slots: slice
    rows: int  # of each padded piece


class Pieces(NamedTuple):
    """The slots in the order in which they are computed."""

    groups: list[Group]
    expert_P: Tensor
    absent: Tensor  # experts without a row
    unsplit: bool  # no expert has two pieces
    slot_S: Tensor  # m * K + k
    token_S: Tensor  # m
    real_S: Tensor  # False: padding


def cpu(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: FFNWeights) -> Tensor:
    """Signature and meaning in kernels/__init__.py; for float32 and bfloat16. It has no second derivative."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x_MC, weight_MK, *bank))
    return _Experts.apply(keep, x_MC, weight_MK, expert_MK, *bank)


def cut(expert_MK: Tensor, experts: int, max_rows: int, group_rows: int, multiple: int) -> Pieces:
    """Sorts the slots by expert, cuts experts into pieces of at most `max_rows`, and groups pieces of similar size.

    Similar sizes are sought among experts that are neighbours in the bank, since they share a task's tokens, and among
    their first pieces, then their second, ..., since those share a stretch of them: what is gathered stays in cache.
    """
    key = expert_MK.reshape(-1)
    order = key.to(torch.int16 if experts < 1 << 15 else torch.int32).sort(stable=True).indices  # radix: few bytes
    load = torch.bincount(key + 1, minlength=experts + 1)  # empty slots first
    begin_E, load_E = (load.cumsum(0) - load)[1:], load[1:]
    pieces_E = (load_E + max_rows - 1) // max_rows
    size_E = (load_E + pieces_E - 1) // pieces_E.clamp(min=1)
    expert_P = torch.repeat_interleave(pieces_E)
    nth_P = torch.arange(len(expert_P)) - (pieces_E.cumsum(0) - pieces_E)[expert_P]
    begin_P = begin_E[expert_P] + nth_P * size_E[expert_P]
    end_P = torch.minimum(begin_P + size_E[expert_P], (begin_E + load_E)[expert_P])

    neighbours = 4 * _pieces_a_group(max(1, len(key) // max(1, len(expert_P))), group_rows)
    stretch_P = expert_P // neighbours * (len(key) + 1) + nth_P
    by_size_P = (end_P - begin_P).argsort(descending=True, stable=True)
    order_P = by_size_P[stretch_P[by_size_P].argsort(stable=True)]
    expert_P, begin_P, end_P, stretch_P = (value[order_P] for value in (expert_P, begin_P, end_P, stretch_P))

    groups = _group((end_P - begin_P).tolist(), stretch_P.tolist(), group_rows, multiple)
    rows_P = torch.tensor([group.rows for group in groups for _ in range(group.first, group.last)], dtype=torch.int64)
    piece_S = torch.repeat_interleave(rows_P)
    place_S = torch.arange(len(piece_S)) - (rows_P.cumsum(0) - rows_P - begin_P)[piece_S]
    end_S = end_P[piece_S]
    slot_S = order[torch.minimum(place_S, end_S - 1)]
    return Pieces(
        groups,
        expert_P,
        (load_E == 0).nonzero()[:, 0],
        len(expert_P) == int((load_E > 0).sum()),
        slot_S,
        slot_S // expert_MK.shape[1],
        place_S < end_S,
    )


def _pieces_a_group(rows: int, group_rows: int) -> int:
    return min(MAX_PIECES, max(1, group_rows // rows))


def _group(sizes: list[int], stretches: list[int], group_rows: int, multiple: int) -> list[Group]:
    """Neighbours of one stretch, the largest first, padded to its size."""
    groups, first, slot = [], 0, 0
    while first < len(sizes):
        rows = -(-sizes[first] // multiple) * multiple
        last = first + 1
        stop = min(len(sizes), first + _pieces_a_group(rows, group_rows))
        while last < stop and stretches[last] == stretches[first]:
            last += 1
        slots = slice(slot, slot + (last - first) * rows)
        groups.append(Group(first, last, slots, rows))
        first, slot = last, slots.stop
    return groups


class _Workspace:
    """Memory that every group of a pass uses again; `take` gives a view of a group's size."""

    def __init__(self, like: Tensor, groups: list[Group], channels: int, hidden: int):
        self.slots = max((group.slots.stop - group.slots.start for group in groups), default=0)
        self.pieces = max((group.last - group.first for group in groups), default=0)
        self.like, self.channels, self.hidden = like, channels, hidden

    def rows(self, width: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.like.new_empty(self.slots, width, dtype=dtype)

    def weights(self, stack: Tensor) -> Tensor:
        return stack.new_empty(self.pieces, *stack.shape[1:])


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which k contributions to a token are added up."""
    return torch.promote_types(dtype, torch.float32)


def _cut_for(x_MC: Tensor, expert_MK: Tensor, experts: int) -> Pieces:
    rows = max(16, GROUP_BYTES // (x_MC.shape[1] * x_MC.element_size()))
    return cut(expert_MK, experts, rows, rows * torch.get_num_threads(), ROW_MULTIPLE.get(x_MC.dtype, 1))


def _pick(stack: Tensor, expert_G: Tensor, space: Tensor) -> Tensor:
    """The experts' weights side by side; a single one where it lies."""
    if len(expert_G) == 1:
        first = int(expert_G)
        return stack[first : first + 1]
    return torch.index_select(stack, 0, expert_G, out=space[: len(expert_G)])


def _scatter(sum_MC: Tensor, token: Tensor, row_C: Tensor) -> None:
    sum_MC.index_add_(0, token, row_C.to(sum_MC.dtype))


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keep, x_MC, weight_MK, expert_MK, w_in_ECH, b_in_EH, w_out_EHC, b_out_EC):
        experts, channels, hidden = w_in_ECH.shape
        pieces = _cut_for(x_MC, expert_MK, experts)
        gate_S1 = (weight_MK.reshape(-1)[pieces.slot_S] * pieces.real_S).to(x_MC.dtype)[:, None]
        b_in_PH, b_out_PC = b_in_EH[pieces.expert_P], b_out_EC[pieces.expert_P]
        space = _Workspace(x_MC, pieces.groups, channels, hidden)
        before_SH = x_MC.new_empty(len(gate_S1), hidden) if keep else space.rows(hidden)  # before the activation
        rows_C, rows_H = space.rows(channels), space.rows(hidden)
        w_in_GCH, w_out_GHC = space.weights(w_in_ECH), space.weights(w_out_EHC)
        y_MC = torch.zeros_like(x_MC, dtype=_sum_dtype(x_MC.dtype))
        for first, last, slots, rows in pieces.groups:
            here, count = slice(first, last), slots.stop - slots.start
            expert_G, token, gate = pieces.expert_P[here], pieces.token_S[slots], gate_S1[slots]
            row_C, hidden_H, before_H = rows_C[:count], rows_H[:count], before_SH[slots if keep else slice(count)]
            row_GRC, hidden_GRH = row_C.view(-1, rows, channels), hidden_H.view(-1, rows, hidden)
            torch.index_select(x_MC, 0, token, out=row_C)
            w_GCH = _pick(w_in_ECH, expert_G, w_in_GCH)
            torch.baddbmm(b_in_PH[here, None], row_GRC, w_GCH, out=before_H.view_as(hidden_GRH))
            torch.ops.aten.gelu.out(before_H, out=hidden_H)
            hidden_H.mul_(gate)
            torch.mul(gate.view(-1, rows, 1), b_out_PC[here, None], out=row_GRC)
            row_GRC.baddbmm_(hidden_GRH, _pick(w_out_EHC, expert_G, w_out_GHC))
            _scatter(y_MC, token, row_C)
        if keep:
            ctx.pieces = pieces
            ctx.save_for_backward(x_MC, weight_MK, w_in_ECH, w_out_EHC, b_out_PC, before_SH, gate_S1)
        return y_MC.to(x_MC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_MC):
        x_MC, weight_MK, w_in_ECH, w_out_EHC, b_out_PC, before_SH, gate_S1 = ctx.saved_tensors
        pieces, dy_MC = ctx.pieces, dy_MC.contiguous()
        experts, channels, hidden = w_in_ECH.shape
        space = _Workspace(x_MC, pieces.groups, channels, hidden)
        rows_C, d_rows_C = space.rows(channels), space.rows(channels)
        rows_H, d_rows_H, more_H = (space.rows(hidden) for _ in range(3))
        w_in_GCH, w_out_GHC = space.weights(w_in_ECH), space.weights(w_out_EHC)
        d_in, d_out = _WeightGradient(w_in_ECH, pieces), _WeightGradient(w_out_EHC, pieces)
        db_in_PH, db_out_PC = x_MC.new_empty(len(b_out_PC), hidden), torch.empty_like(b_out_PC)
        dx_MC = torch.zeros_like(x_MC, dtype=_sum_dtype(x_MC.dtype))
        dgate_S1 = torch.empty_like(gate_S1)
        for first, last, slots, rows in pieces.groups:
            here, count = slice(first, last), slots.stop - slots.start
            expert_G, token, gate = pieces.expert_P[here], pieces.token_S[slots], gate_S1[slots]
            row_C, dy_C, before_H = rows_C[:count], d_rows_C[:count], before_SH[slots]
            hidden_H, d_hidden_H, product_H = rows_H[:count], d_rows_H[:count], more_H[:count]
            row_GRC, dy_GRC = row_C.view(-1, rows, channels), dy_C.view(-1, rows, channels)
            hidden_GRH, d_hidden_GRH = hidden_H.view(-1, rows, hidden), d_hidden_H.view(-1, rows, hidden)

            # y = g (hidden w_out + b_out): what reaches the gate is what reaches hidden, times hidden, summed.
            torch.index_select(dy_MC, 0, token, out=dy_C)
            torch.bmm(dy_GRC, _pick(w_out_EHC, expert_G, w_out_GHC).mT, out=d_hidden_GRH)
            torch.ops.aten.gelu.out(before_H, out=hidden_H)
            torch.mul(d_hidden_H, hidden_H, out=product_H)
            dgate = torch.sum(product_H, 1, keepdim=True, out=dgate_S1[slots])
            # A product with one column is no faster than with fifty; element by element it is.
            dgate += torch.mul(dy_GRC, b_out_PC[here, None], out=row_GRC).sum(2).view(-1, 1)
            d_out.add(expert_G, hidden_H.mul_(gate).view_as(hidden_GRH).mT, dy_GRC, w_out_GHC)
            torch.bmm(gate.view(-1, 1, rows), dy_GRC, out=db_out_PC[here, None])

            d_before_H = torch.ops.aten.gelu_backward.grad_input(d_hidden_H.mul_(gate), before_H, grad_input=product_H)
            d_before_GRH = d_before_H.view_as(hidden_GRH)
            torch.index_select(x_MC, 0, token, out=row_C)
            d_in.add(expert_G, row_GRC.mT, d_before_GRH, w_in_GCH)
            torch.sum(d_before_GRH, 1, out=db_in_PH[here])
            torch.bmm(d_before_GRH, _pick(w_in_ECH, expert_G, w_in_GCH).mT, out=row_GRC)
            _scatter(dx_MC, token, row_C)
        dweight = torch.zeros(weight_MK.numel(), dtype=weight_MK.dtype)
        dweight[pieces.slot_S[pieces.real_S]] = dgate_S1[pieces.real_S, 0].to(weight_MK.dtype)
        db_in_EH, db_out_EC = (d.new_zeros(experts, d.shape[1]) for d in (db_in_PH, db_out_PC))
        db_in_EH.index_add_(0, pieces.expert_P, db_in_PH)
        db_out_EC.index_add_(0, pieces.expert_P, db_out_PC)
        return (
            None,
            dx_MC.to(x_MC.dtype),
            dweight.view_as(weight_MK),
            None,
            d_in.total,
            db_in_EH,
            d_out.total,
            db_out_EC,
        )


class _WeightGradient:
    """The gradient of a stack of weights, written expert by expert; each page of it is touched once if it can be."""

    def __init__(self, stack: Tensor, pieces: Pieces):
        self.overwrite = pieces.unsplit
        self.total = torch.empty_like(stack) if self.overwrite else torch.zeros_like(stack)
        if self.overwrite:
            self.total.index_fill_(0, pieces.absent, 0)

    def add(self, expert_G: Tensor, a: Tensor, b: Tensor, space: Tensor) -> None:
        if len(expert_G) == 1:
            first = int(expert_G)
            one = self.total[first : first + 1]
            torch.bmm(a, b, out=one) if self.overwrite else one.baddbmm_(a, b)
            return
        product = torch.bmm(a, b, out=space[: len(expert_G)])
        if self.overwrite:
            self.total.index_copy_(0, expert_G, product)
        else:
            self.total.index_add_(0, expert_G, product)
