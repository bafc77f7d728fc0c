"""Experts stacked into one parameter for each weight: the routed ones of a rank, and those that every rank has.

Every expert is initialised from a seed of its own, (run seed, block, task, expert), so that any placement over
ranks, and any backend, starts from the same numbers.

Legend: E experts here, C channels, H hidden size of a fine expert, T tasks, S shared experts per task.
"""

from __future__ import annotations

from typing import Iterable, Iterator, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn

from fgmoe_dist.experts.groups import mark_expert_parameter
from fgmoe_dist.experts.kinds import Kind
from fgmoe_dist.experts.kinds.base import affine, axes_of
from fgmoe_dist.experts.settings import Experts


class ExpertBank(nn.Module):
    """The routed experts of a rank, stacked. `identities` names each; parameters are marked as those of experts."""

    def __init__(self, kind: Kind, channels: int, hidden: int, identities: Sequence[tuple], ep_size: int):
        super().__init__()
        self.kind = kind
        members = [kind.initial(channels, hidden, *identity) for identity in identities]
        for name, value in _stack(kind, members).items():
            self.register_parameter(name, nn.Parameter(value))
        for parameter in self.parameters():
            mark_expert_parameter(parameter, ep_size)

    @property
    def weights(self) -> NamedTuple:
        """`Kind.Weights` of all experts here."""
        return self.kind.Weights(*(getattr(self, name) for name in self.kind.weights))


class PairBank(nn.Module):
    """The routed experts of a rank where an expert is a pair of vectors (kinds/rank_one.py).

    `a_QC` are the first vectors of all banks here, those of experts; `b_OJC` the second ones of each bank, which every
    rank has.

    Args:
        first: of each vector a_i here, one bank's after the other's, the identity that it is drawn from.
        banks: O, how many banks they are of, with as many each.
        seconds: J, vectors b_j of a bank.
    """

    def __init__(self, kind: Kind, channels: int, first: Sequence[tuple], banks: int, seconds: int, ep_size: int):
        super().__init__()
        a_QCR, b_RC = zip(*(kind.initial(channels, 1, *identity).values() for identity in first))
        self.a_QC = nn.Parameter(torch.stack(a_QCR)[..., 0])
        self.b_OJC = nn.Parameter(b_RC[0].expand(banks, seconds, -1).clone())
        self.kind = kind
        mark_expert_parameter(self.a_QC, ep_size)

    @property
    def weights(self) -> NamedTuple:
        """`Kind.Weights` of all pairs here: of each a_i with every b_j of its bank."""
        banks, seconds, _ = self.b_OJC.shape
        a_EC = self.a_QC.repeat_interleave(seconds, dim=0)
        b_EC = self.b_OJC[:, None].expand(-1, len(self.a_QC) // banks, -1, -1).flatten(0, 2)
        return self.kind.Weights(a_EC[:, :, None], b_EC[:, None])

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: the second vectors, unless there is one bank."""
        return iter((self.b_OJC,) if len(self.b_OJC) > 1 else ())


class SharedExperts(nn.Module):
    """S always-on fine experts of each of T tasks, replicated: `y = sum_s g_s E_s(x)`, g_s = 1 if ungated.

    Side by side, S fine experts are one of hidden size S*H; a gate scales its share of the hidden units.
    """

    def __init__(self, kind: Kind, tasks: int, channels: int, hidden: int, count: int, *identity: object):
        super().__init__()
        self.kind, self.count = kind, count
        members = [
            [kind.initial(channels, hidden, *identity, "shared", t, s) for s in range(count)] for t in range(tasks)
        ]
        rows = [_stack(kind, row) for row in members]
        self._names = {}
        for name in kind.weights:
            wide, value = _side_by_side(name, kind.unit, torch.stack([row[name] for row in rows]))
            self._names[name] = wide
            self.register_parameter(wide, nn.Parameter(value))

    def forward(self, x_TNC: Tensor, gate_TNS: Optional[Tensor]) -> Tensor:
        weights, inner = [getattr(self, name) for name in self._names.values()], self.kind.inner
        w_out_THC, *bias_TSC = weights[inner:]
        hidden_TNH = self.kind.hidden(x_TNC, *weights[:inner])
        if gate_TNS is None:
            return affine(hidden_TNH, w_out_THC, *(bias.sum(1) for bias in bias_TSC))
        gate_TNS = gate_TNS.to(x_TNC.dtype)
        hidden_TNH = hidden_TNH * gate_TNS.repeat_interleave(hidden_TNH.shape[2] // self.count, dim=2)
        y_TNC = affine(hidden_TNH, w_out_THC)
        return y_TNC + torch.bmm(gate_TNS, *bias_TSC) if bias_TSC else y_TNC

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: all."""
        return self.parameters()


class GlobalExperts(nn.Module):
    """Experts over the aggregated feature that all tasks share, mixed for each task by feature and task.

    `y_t = sum_g softmax(a w_t + b_t)_g E_g(a)`: each runs once for all tasks, so what one task teaches it
    the others can use; the mixture depends on the input feature and on the task.
    Legend: G global experts, a_NC the aggregated feature.
    """

    def __init__(self, kind: Kind, tasks: int, channels: int, hidden: int, count: int, *identity: object):
        super().__init__()
        self.kind = kind
        members = [kind.initial(channels, hidden, *identity, "global", g) for g in range(count)]
        self._names = {name: name.replace("_E", "_G") for name in kind.weights}
        for name, value in _stack(kind, members).items():
            self.register_parameter(self._names[name], nn.Parameter(value))
        self.gate_TCG = nn.Parameter(torch.empty(tasks, channels, count).normal_(std=channels**-0.5))
        self.gate_bias_TG = nn.Parameter(torch.zeros(tasks, count))

    def forward(self, a_NC: Tensor) -> Tensor:
        """`y_TNC` for `a_NC`."""
        tasks, _, count = self.gate_TCG.shape
        return self._mixed(a_NC.expand(count, *a_NC.shape), a_NC.expand(tasks, *a_NC.shape))

    def _mixed(self, in_GNC: Tensor, x_TNC: Tensor) -> Tensor:
        """What each expert makes of its own input, in each task's mixture by `x_TNC`."""
        out_GNC = self.kind.forward(in_GNC, *(getattr(self, name) for name in self._names.values()))
        gate_TNG = torch.baddbmm(self.gate_bias_TG[:, None], x_TNC, self.gate_TCG).float().softmax(-1)
        return torch.einsum("tng,gnc->tnc", gate_TNG.to(out_GNC.dtype), out_GNC)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: the mixture's."""
        yield from (self.gate_TCG, self.gate_bias_TG)


class CrossTaskExperts(GlobalExperts):
    """Global experts over the features of all tasks: each weighs whom it reads, each task whom it listens to.

        v_g = sum_s softmax_s(x_s r_s + c_s)_g x_s              what expert g reads, by feature and task
        y_t = sum_g softmax_g(x_t w_t + b_t)_g E_g(v_g)         what task t takes of it, likewise

    r starts at zero, so that at first every expert reads the mean over tasks.
    Legend: G global experts, x_TNC the tasks' features.
    """

    def __init__(self, kind: Kind, tasks: int, channels: int, hidden: int, count: int, *identity: object):
        super().__init__(kind, tasks, channels, hidden, count, *identity)
        self.read_TCG = nn.Parameter(torch.zeros(tasks, channels, count))
        self.read_bias_TG = nn.Parameter(torch.zeros(tasks, count))

    def forward(self, x_TNC: Tensor) -> Tensor:
        """`y_TNC` for `x_TNC`."""
        share_TNG = torch.baddbmm(self.read_bias_TG[:, None], x_TNC, self.read_TCG).float().softmax(0)
        return self._mixed(torch.einsum("tng,tnc->gnc", share_TNG.to(x_TNC.dtype), x_TNC), x_TNC)


def create_global_experts(kind: Kind, tasks: int, channels: int, config: Experts, *identity: object) -> GlobalExperts:
    """Those of a block, which read what `config.global_input` says."""
    layer = CrossTaskExperts if config.crosses_tasks else GlobalExperts
    return layer(kind, tasks, channels, config.hidden, config.global_experts, *identity)


def _stack(kind: Kind, members: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each weight of all `members` under its name."""
    members = list(members)
    return {name: torch.stack([member[name] for member in members]) for name in kind.weights}


def _side_by_side(name: str, unit: str, stack_TS: Tensor) -> tuple[str, Tensor]:
    """A weight of each task's S experts as that of one wide expert, and its name.

    `w_in_ECH` as `[T, S, C, H]` becomes `w_in_TCH [T, C, S*H]`. What has no hidden units stays apart: `b_out_EC` turns
    into `b_out_TSC`.
    """
    stem, axes = name.rpartition("_")[0], axes_of(name)
    if unit not in axes:
        return f"{stem}_TS{axes}", stack_TS
    place = 1 + axes.index(unit)
    return f"{stem}_T{axes}", stack_TS.movedim(1, place).flatten(place, place + 1)
