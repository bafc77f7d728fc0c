"""A kind of expert, a kernel, a router, a loss and a backend from outside: named in a configuration, and trained."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.backends import BACKENDS
from fgmoe_dist.experts.backends.fused import FusedExperts
from fgmoe_dist.experts.balance import BALANCE, BalanceTerms, Sums, auxiliary_losses
from fgmoe_dist.experts.kernels import KERNELS, Kernel, find_kernel
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.kinds.base import Kind, affine
from fgmoe_dist.experts.routers import ROUTERS, Router, Routing
from tests.ranks import run_ranks

TASKS, TOKENS, C, WORLD = 2, 8, 8, 2
SETTINGS = dict(
    count=4, split=1, hidden=6, top_k=2, kind="gated", kernel="mine", router="turns", backend="counting",
    balance_weight=0.0, balance_losses={"ridge": 0.5},
)  # fmt: skip


class GatedWeights(NamedTuple):
    gate_ECH: Tensor
    up_ECH: Tensor
    down_EHC: Tensor


class Gated(Kind):
    """A gated linear unit: `(sigmoid(x w) * x v) u`."""

    Weights = GatedWeights
    inner, unit, kept_units = 2, "H", 4

    def draw(self, channels: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in self.shapes(channels, hidden).items()}

    def hidden(self, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        return affine(x, gate).sigmoid() * affine(x, up)


class Turns(Router):
    """Token n takes the experts n, n + 1, ... in turn, each with the gate that its task has learnt for it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gate_TE = nn.Parameter(torch.linspace(0.5, 1, self.tasks * self.config.routed).view(self.tasks, -1))

    def forward(self, x_TNC: Tensor, images: int = 1) -> Routing:
        token_N1, slot_K = torch.arange(x_TNC.shape[1])[:, None], torch.arange(self.config.top_k)
        expert_TNK = ((token_N1 + slot_K) % self.config.routed).expand(len(x_TNC), -1, -1)
        score_TNE = self.gate_TE[:, None].expand(-1, x_TNC.shape[1], -1)
        return Routing(
            score_TNE.gather(2, expert_TNK), expert_TNK, None, BalanceTerms.of(score_TNE, score_TNE, expert_TNK)
        )

    def after_step(self, load_TE: Tensor) -> None:
        self.seen_TE = load_TE


def ridge(sums: Sums) -> Tensor:
    return sums.mean_score_TE.square().sum()


class Counting(FusedExperts):
    """The fused backend, which notes how many tokens it was given."""

    def dispatch(self, x_TNC: Tensor, images: int = 1):
        self.given = x_TNC.shape[1]
        return super().dispatch(x_TNC, images)


def slowly(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: GatedWeights) -> Tensor:
    """All experts for all rows, most of it multiplied by zero."""
    chosen_MKE = F.one_hot(expert_MK.long() + 1, len(bank.up_ECH) + 1)[..., 1:].to(x_MC)
    gate_ME = (weight_MK.to(x_MC)[..., None] * chosen_MKE).sum(1)
    out_EMC = KINDS["gated"].forward(x_MC.expand(len(bank.up_ECH), *x_MC.shape), *bank)
    return torch.einsum("me,emc->mc", gate_ME, out_EMC)


def registered(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(KINDS, "gated", Gated())
    patch.setitem(ROUTERS, "turns", Turns)
    patch.setitem(BALANCE, "ridge", ridge)
    patch.setitem(BACKENDS, "counting", Counting)
    patch.setitem(KERNELS, ("gated", "mine"), Kernel(slowly, lambda place: None))


def configuration(ep_size: int = 1, **changes):
    return build_config({
        "experts": {**SETTINGS, **changes}, "parallel": {"ep_size": ep_size},
        "train": {"batch_size": WORLD, "micro_batch_size": 1, "lr": 0.1, "clip_norm": 0.0, "steps": 9},
    })  # fmt: skip


def inputs(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(TASKS, TOKENS, C, generator=generator), torch.randn(TOKENS, C, generator=generator)


def a_step(ep_size: int, **changes) -> dict:
    """One step of a block on this rank: its output, losses, and the experts' weights before and after."""
    import torch.distributed as dist

    from fgmoe_dist.decoders.parts.block import FGMoEBlock
    from fgmoe_dist.training.engines.deepspeed import create_engine

    with pytest.MonkeyPatch.context() as patch:
        registered(patch)
        config = configuration(ep_size, **changes)
        torch.manual_seed(3)
        block = FGMoEBlock(TASKS, C, config.experts, ep_size, block=0, seed=5)
        engine = create_engine(block, config)
        weights = [weights_of(block)]
        h_TNC, *terms = engine(*inputs(dist.get_rank()))
        losses, counts = auxiliary_losses([BalanceTerms(*terms)], config.experts, 1)
        engine.backward(h_TNC.square().mean() + sum(weight * loss for weight, loss in losses.values()))
        engine.step()
        block.routed.routers.after_step(counts["load"][0])
        weights.append(weights_of(block))
        return {
            "output": h_TNC.tolist(), "losses": {name: (w, loss.item()) for name, (w, loss) in losses.items()},
            "weights": weights, "gates": block.routed.routers.gate_TE.tolist(), "given": block.routed.given,
            "load": block.routed.routers.seen_TE.tolist(),
        }  # fmt: skip


def weights_of(block: nn.Module) -> dict[tuple, list]:
    return {(e.task, e.expert, e.weight): e.parameter[e.index].tolist() for e in block.routed.logical_experts()}


@pytest.mark.slow  # test_examples.py trains with parts of a block among the quick tests
def test_all_of_a_block_s_parts_come_from_outside_and_train_on_two_ranks(monkeypatch):
    apart, together = run_ranks(WORLD, a_step, 2), run_ranks(WORLD, a_step, 1)
    for rank, (mine, theirs) in enumerate(zip(apart, together)):
        torch.testing.assert_close(torch.tensor(mine["output"]), by_loops(monkeypatch, rank), rtol=1e-5, atol=1e-5)
        gates = torch.linspace(0.5, 1, TASKS * 4)
        weight, loss = mine["losses"]["experts/ridge_loss"]
        assert (weight, loss) == (0.5, pytest.approx(gates.square().sum().item()))
        assert mine["load"] == [[WORLD * TOKENS * 2 / 4] * 4] * TASKS and mine["given"] == TOKENS
        assert len(mine["weights"][0]) == TASKS * 2 * 3, "half of the experts each"
        for name, after in mine["weights"][1].items():
            assert after != mine["weights"][0][name]
            assert torch.tensor(after).allclose(torch.tensor(theirs["weights"][1][name]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine["gates"], theirs["gates"])


def by_loops(monkeypatch: pytest.MonkeyPatch, rank: int) -> Tensor:
    """The block's equation, a token and an expert at a time."""
    from fgmoe_dist.decoders.parts.block import FGMoEBlock

    registered(monkeypatch)
    torch.manual_seed(3)
    block = FGMoEBlock(TASKS, C, configuration().experts, 1, block=0, seed=5)
    u_TNC, a_NC = inputs(rank)
    x_TNC, gates = F.layer_norm(u_TNC, (C,)), torch.linspace(0.5, 1, TASKS * 4).view(TASKS, 4)

    def expert(x_C: Tensor, *identity: object) -> Tensor:
        gate, up, down = KINDS["gated"].initial(C, 6, 5, "block", 0, *identity).values()
        return (1 / (1 + (-x_C @ gate).exp()) * (x_C @ up)) @ down

    out = u_TNC + block.global_experts(F.layer_norm(a_NC, (C,)))
    for t in range(TASKS):
        for n in range(TOKENS):
            out[t, n] += expert(x_TNC[t, n], "shared", t, 0)
            out[t, n] += sum(gates[t, e] * expert(x_TNC[t, n], t, e) for e in (n % 4, (n + 1) % 4))
    return out.detach()


def test_the_reference_computes_a_kind_that_no_kernel_knows(monkeypatch):
    registered(monkeypatch)
    bank = GatedWeights(*(torch.randn(3, *shape) for shape in KINDS["gated"].shapes(C, 6).values()))
    rows = torch.randn(5, C), torch.rand(5, 2), torch.tensor([[0, 2], [1, -1], [2, 1], [-1, -1], [0, 1]])
    ours, theirs = (find_kernel("gated", name)(*rows, bank) for name in ("mine", "reference"))
    torch.testing.assert_close(ours, theirs)


def test_what_is_not_registered_is_refused_by_name():
    for key, value in {"kind": "gated", "router": "turns", "backend": "counting", "kernel": "mine"}.items():
        with pytest.raises(UserError, match=f"experts.{key}={value}: there is no such {key}; name one of "):
            build_config({"experts": {key: value}})
    with pytest.raises(
        UserError, match="experts.balance_losses.ridge: there is no such loss; name one of pooled, importance"
    ):
        build_config({"experts": {"balance_losses": {"ridge": 1.0}}})
    with pytest.raises(UserError, match="experts.balance_losses.z: set experts.z_weight in its place"):
        build_config({"experts": {"balance_losses": {"z": 1.0}}})
    with pytest.raises(UserError, match="balance_losses.pooled=-1: input should be greater than or equal to 0"):
        build_config({"experts": {"balance_losses": {"pooled": -1}}})
    with pytest.raises(
        UserError, match="experts.kernel=cpu computes no lora experts; take reference or wide, or set .*=auto"
    ):
        build_config({"experts": {"kind": "lora", "kernel": "cpu"}})
    for key, value in {"bank": "shared", "router": "image"}.items():
        with pytest.raises(UserError, match=f"experts.{key}={value} needs experts.backend=fused"):
            build_config({"experts": {"backend": "deepspeed", key: value}})
