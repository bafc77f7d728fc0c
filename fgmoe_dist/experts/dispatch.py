"""Sends tokens to the ranks that hold their experts and brings weighted sums back.

One exchange of counts, one of data out, one of data back, for all tasks of a block together. A token crosses to
a rank once, even if several of its experts live there; what returns is that rank's gate-weighted partial sum. Rows for
this rank's own experts do not travel: they wait here for the others.
Both exchanges are asynchronous: between `start` and `wait` the caller computes what needs no remote token. The
backward pass mirrors it, since autograd reaches `wait` before, and `start` after, everything in between.

Legend: N tokens, C channels, K experts per token, R ranks of the group, M rows sent, L rows received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """How the rows of one dispatch travel. `combine` needs nothing else."""

    token_M: Tensor  # which token each row is: this rank's own first, then by destination; within one, by token
    own_rows: int
    send_rows: list[int]  # to every rank; none to this one
    receive_rows: list[int]
    tokens: int
    group: Optional[dist.ProcessGroup]


class Exchange:
    """Rows under way. They bypass autograd, in which a scalar token stands for them and keeps the order."""

    def __init__(self, route: Route, rows: Sequence[Tensor], back: bool):
        sending, receiving = (route.receive_rows, route.send_rows) if back else (route.send_rows, route.receive_rows)
        self.route, self.back = route, back
        self.columns = [(row.shape[1], row.dtype) for row in rows]
        self.gradient_exchange: Optional[Exchange] = None  # the same way back
        self._own = [row[: route.own_rows] for row in rows]
        self._outgoing = _pack([row[route.own_rows :] for row in rows])  # must outlive the transfer
        self._arriving = self._outgoing.new_empty(sum(receiving), self._outgoing.shape[1])
        self._work = dist.all_to_all_single(
            self._arriving, self._outgoing, receiving, sending, group=route.group, async_op=True
        )

    def finish(self) -> list[Tensor]:
        """Waits, puts what arrived behind this rank's own rows, and frees the bytes before the experts run."""
        self._work.wait()
        rows = [torch.cat(parts) for parts in zip(self._own, _unpack(self._arriving, self.columns))]
        self._work = self._own = self._outgoing = self._arriving = None
        return rows


class Started(NamedTuple):
    """What `start_exchange` returns and `wait_exchange` takes. The token is not in the exchange, which its graph holds:
    such a circle would keep the bytes alive.
    """

    exchange: Exchange
    token: Tensor


def plan_route(
    x_NC: Tensor, weight_NK: Tensor, expert_NK: Tensor, owner_NK: Tensor, group: dist.ProcessGroup
) -> tuple[Route, tuple[Tensor, Tensor, Tensor]]:
    """The route of `x_NC`, and per row of it its token's `x_MC`, `weight_MK` and `expert_MK`.

    `owner_NK` is the rank in `group` that holds each expert, `expert_NK` its index there; an owner of -1 is a slot
    that goes nowhere. Slots of experts that live elsewhere are -1 with weight 0. Waits for the other ranks' counts:
    the one host sync of a block, after which every size is known.
    """
    tokens, ranks, me = len(owner_NK), dist.get_world_size(group), dist.get_rank(group)
    needed_RN = owner_NK.new_zeros(ranks + 1, tokens, dtype=torch.bool)
    needed_RN = needed_RN.scatter_(0, owner_NK.T % (ranks + 1), True)[:ranks]  # -1 fell into the row cut off here
    send_R = needed_RN.sum(1)
    receive_R = torch.empty_like(send_R)
    dist.all_to_all_single(receive_R, send_R, group=group)
    send_rows, receive_rows = torch.stack([send_R, receive_R]).tolist()
    needed_RN = torch.cat([needed_RN[me : me + 1], needed_RN[:me], needed_RN[me + 1 :]])
    place_M, token_M = torch.nonzero_static(needed_RN, size=sum(send_rows)).unbind(1)
    rank_M = torch.where(place_M == 0, me, place_M - (place_M <= me).to(place_M.dtype))
    own_rows, send_rows[me], receive_rows[me] = send_rows[me], 0, 0
    route = Route(token_M, own_rows, send_rows, receive_rows, tokens, group)
    here_MK = owner_NK[token_M] == rank_M[:, None]
    weight_MK = torch.where(here_MK, _Spread.apply(route, weight_NK), 0)
    expert_MK = torch.where(here_MK, expert_NK[token_M], -1).to(torch.int32)
    return route, (_Spread.apply(route, x_NC), weight_MK, expert_MK)


def start_exchange(route: Route, *rows: Tensor, back: bool = False) -> Started:
    """Starts sending `rows` (all with the same number of rows) along `route`, or back along it."""
    exchange = Exchange(route, [row.detach() for row in rows], back)
    return Started(exchange, _Start.apply(exchange, *rows))


def wait_exchange(started: Started) -> tuple[Tensor, ...]:
    """This rank's own rows, then those that came from the others, in the order of their ranks."""
    return _Wait.apply(started.exchange, started.token)


def combine(route: Route, y_MC: Tensor) -> Tensor:
    """Adds each returned partial sum to its token: `y_NC`."""
    return _Gather.apply(route, y_MC)


class _Spread(torch.autograd.Function):
    """Tokens to the rows that are sent; `_Gather` is its transpose."""

    @staticmethod
    def forward(ctx, route: Route, x_NC: Tensor) -> Tensor:
        ctx.route = route
        return x_NC.index_select(0, route.token_M)

    @staticmethod
    def backward(ctx, gradient_MC: Tensor):
        return None, _Gather.apply(ctx.route, gradient_MC)


class _Gather(torch.autograd.Function):
    """Rows added up by token, one destination after the other: within one no token comes twice, so that the order of
    the sum is fixed and the result repeats bit for bit on any device."""

    @staticmethod
    def forward(ctx, route: Route, y_MC: Tensor) -> Tensor:
        ctx.route = route
        y_NC = y_MC.new_zeros(route.tokens, y_MC.shape[1])
        segments = [route.own_rows, *route.send_rows]
        for token_M, rows_MC in zip(route.token_M.split(segments), y_MC.split(segments)):
            y_NC.index_add_(0, token_M, rows_MC)
        return y_NC

    @staticmethod
    def backward(ctx, gradient_NC: Tensor):
        return None, _Spread.apply(ctx.route, gradient_NC)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, exchange: Exchange, *rows: Tensor) -> Tensor:
        ctx.exchange = exchange
        return rows[0].new_zeros(())

    @staticmethod
    def backward(ctx, _):
        # Taken out of the exchange, which may get others: a graph can be walked again, loss by loss.
        back, ctx.exchange.gradient_exchange = ctx.exchange.gradient_exchange, None
        gradients = iter(back.finish())
        return None, *[next(gradients) if dtype.is_floating_point else None for _, dtype in ctx.exchange.columns]


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, exchange: Exchange, token: Tensor) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        rows = exchange.finish()
        ctx.mark_non_differentiable(*[row for row in rows if not row.dtype.is_floating_point])
        return tuple(rows)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        exchange = ctx.exchange
        floating = [grad for grad, (_, dtype) in zip(gradients, exchange.columns) if dtype.is_floating_point]
        exchange.gradient_exchange = Exchange(exchange.route, floating, not exchange.back)
        return None, floating[0].new_zeros(())


def _pack(rows: Sequence[Tensor]) -> Tensor:
    """The columns of all `rows` side by side as bytes: floats keep their precision, indices ride along."""
    # Contiguous is not enough: dimensions of size 0 and 1 may have any stride, and views by bytes look at them.
    plain = [row.contiguous().as_strided(row.shape, (row.shape[1], 1)) for row in rows]
    return torch.cat([row.view(torch.uint8) for row in plain], dim=1)


def _unpack(buffer: Tensor, columns: list[tuple[int, torch.dtype]]) -> list[Tensor]:
    widths = [width * dtype.itemsize for width, dtype in columns]
    return [_view(part, dtype) for part, (_, dtype) in zip(buffer.split(widths, dim=1), columns)]


def _view(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers where they lie, if they are aligned."""
    aligned = all(offset % dtype.itemsize == 0 for offset in (part.storage_offset(), part.stride(0)))
    return (part if aligned else part.contiguous()).view(dtype)
