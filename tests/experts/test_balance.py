"""Balance losses and the figures of a load, against hand-computed values and the published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.experts.balance import (
    BALANCE,
    BalanceTerms,
    auxiliary_losses,
    figures_of,
    load_figures,
    metrics,
    rank_imbalance,
)
from fgmoe_dist.experts.routers import ROUTERS
from fgmoe_dist.experts.routers.token import TokenRouter
from fgmoe_dist.experts.settings import OWN_WEIGHT, Experts
from tests.experts.test_routers import X, routers
from tests.ranks import run_ranks

FREE = [name for name in BALANCE if name not in OWN_WEIGHT]


def losses_of(load: list, scores: list, groups: int = 1) -> dict[str, float]:
    """Of tasks with one token a unit of load, top-1, and these mean scores; a list of lists, or of one task."""
    load_TE, score_TE = torch.atleast_2d(torch.tensor(load)), torch.atleast_2d(torch.tensor(scores))
    tokens = load_TE[0].sum()
    entropy = tokens * -(score_TE.clamp(min=1e-30).log() * score_TE).sum()  # of as many tokens with the same scores
    terms = BalanceTerms(
        load_TE, torch.zeros(len(load_TE)), tokens, tokens * score_TE, torch.tensor(0.0), entropy=entropy
    )
    return values([terms], groups)


def values(terms: list[BalanceTerms], groups: int = 1) -> dict[str, float]:
    """Every loss there is, by name."""
    free = [name for name in FREE if name != "entropy" or terms[0].entropy is not None]
    losses, _ = auxiliary_losses(terms, Experts(balance_losses=dict.fromkeys(free, 0.5)), groups)
    return {name.split("/")[1].removesuffix("_loss"): value.item() for name, (_, value) in losses.items()}


def test_balance_loss_is_one_when_even_and_e_over_k_when_all_go_to_the_same():
    assert losses_of([5.0] * 4, [0.25] * 4)["balance"] == pytest.approx(1.0)
    assert losses_of([7.0, 0, 0, 0], [1.0, 0, 0, 0])["balance"] == pytest.approx(4.0)


def test_device_loss_is_one_when_even_over_groups_and_their_number_when_one_has_all():
    assert losses_of([5.0] * 4, [0.25] * 4, 2)["device_balance"] == pytest.approx(1.0)
    assert losses_of([6.0, 0, 0, 6], [0.5, 0, 0, 0.5], 2)["device_balance"] == pytest.approx(1.0)
    assert losses_of([3.0, 9, 0, 0], [0.25, 0.75, 0, 0], 2)["device_balance"] == pytest.approx(2.0)


def test_device_loss_by_hand():
    # f = 4 / 8 * (5, 1, 2, 0) = (2.5, 0.5, 1, 0): f' = (1.5, 0.5); P' = (0.7, 0.3).
    losses = losses_of([5.0, 1, 2, 0], [0.6, 0.1, 0.2, 0.1], 2)
    assert losses["device_balance"] == pytest.approx(1.5 * 0.7 + 0.5 * 0.3)
    assert losses["balance"] == pytest.approx(2.5 * 0.6 + 0.5 * 0.1 + 1 * 0.2)


def test_balance_loss_by_hand():
    # Two tokens choose {3, 2} and {0, one of the ties}: f = E / (K N) * load = 4 / (2 * 2) * load.
    terms = routers()(X).balance
    losses = values([terms])
    assert terms.load_TE.sum().item() == 4
    assert losses["balance"] == pytest.approx(
        sum(load * p / 2 for load, p in zip(terms.load_TE[0].tolist(), terms.score_TE[0].tolist()))
    )
    z = [math.log(sum(math.exp(i) for i in range(4))), math.log(math.exp(3) + 3)]
    assert losses["z"] == pytest.approx((z[0] ** 2 + z[1] ** 2) / 2)


WORLD, TASKS, C = 3, 2, 4
BALANCED = Experts(count=4, split=2, top_k=3, groups=4, capacity_factor=1.0, balance_losses=dict.fromkeys(FREE, 1.0))


def balance_of(x_TNC: torch.Tensor) -> tuple[list, list, list, list]:
    """The losses of two blocks' routers, each loss's gradient, load and dropped slots, as plain numbers."""
    torch.manual_seed(0)
    blocks = [TokenRouter(TASKS, C, BALANCED) for _ in range(2)]
    terms = [block(x_TNC, x_TNC.shape[1]).balance for block in blocks]
    losses, counts = auxiliary_losses(terms, BALANCED, BALANCED.groups)
    losses = [loss for _, loss in losses.values()]
    weights = [block.weight_TCE for block in blocks]
    gradients = [gradient_of(loss, weights) for loss in losses]
    return [loss.item() for loss in losses], gradients, counts["load"].tolist(), counts["dropped"].tolist()


def gradient_of(loss: torch.Tensor, weights: list[torch.Tensor]) -> list[float]:
    """Zero where it has none, as the load of a router without noise."""
    if not loss.requires_grad:
        return [0.0] * sum(weight.numel() for weight in weights)
    return torch.cat(torch.autograd.grad(loss, weights, retain_graph=True)).flatten().tolist()


def balance_of_splits(splits: list[list[int]]) -> list:
    import torch.distributed as dist

    rank = dist.get_rank()
    return [balance_of(tokens(split).split(split, 1)[rank]) for split in splits]


def tokens(split: list[int]) -> torch.Tensor:
    return torch.randn(TASKS, sum(split), C, generator=torch.Generator().manual_seed(sum(split)))


@settings(deadline=None, max_examples=2, database=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=WORLD, max_size=WORLD).filter(sum), min_size=8, max_size=8))
def test_losses_of_ranks_are_those_of_all_tokens_on_one(splits):
    """Whatever the split: the mean over ranks of a loss, and of its gradient, which is what the engine takes."""
    answers = run_ranks(WORLD, balance_of_splits, splits)
    for split, *each in zip(splits, *answers):
        losses, gradients, load, dropped = balance_of(tokens(split))
        for i, loss in enumerate(losses):
            assert sum(rank[0][i] for rank in each) / WORLD == pytest.approx(loss, rel=1e-5), split
            mean = [sum(values) / WORLD for values in zip(*(rank[1][i] for rank in each))]
            assert mean == pytest.approx(gradients[i], rel=1e-4, abs=1e-6)
        assert all((rank[2], rank[3]) == (load, dropped) for rank in each)


def test_a_pool_is_even_where_tasks_share_it_out_between_them():
    one_each = [[8.0, 0, 0, 0], [0, 8.0, 0, 0], [0, 0, 8.0, 0], [0, 0, 0, 8.0]]
    certain = [[float(x > 0) for x in row] for row in one_each]
    losses = losses_of(one_each, certain)
    assert losses["pooled"] == 0 and losses["balance"] == pytest.approx(4)
    assert losses_of([one_each[0]] * 4, [certain[0]] * 4)["pooled"] == pytest.approx(4), "the number of experts"
    shares = np.array([[0.5, 0.3, 0.2, 0], [0.1, 0.1, 0.1, 0.7]])
    by_hand = (np.std(shares.mean(0), ddof=1) / shares.mean()) ** 2
    assert losses_of([[2.0] * 4] * 2, shares.tolist())["pooled"] == pytest.approx(by_hand)


def test_every_loss_comes_with_its_weight_in_the_order_of_a_total():
    config = Experts(balance_weight=0.1, z_weight=0.2, device_balance_weight=0.3, balance_losses={"pooled": 0.4})
    losses, counts = auxiliary_losses([routers()(X).balance] * 2, config, 2)
    assert {name: weight for name, (weight, _) in losses.items()} == {
        "experts/balance_loss": 0.1, "experts/z_loss": 0.2, "experts/device_balance_loss": 0.3,
        "experts/pooled_loss": 0.4,
    }  # fmt: skip
    assert list(losses)[:3] == ["experts/balance_loss", "experts/z_loss", "experts/device_balance_loss"]
    assert counts["load"].shape == (2, 1, 4) and counts["dropped"].shape == (2, 1)
    losses, _ = auxiliary_losses([routers()(X).balance], Experts(z_weight=0), 2)
    assert list(losses) == ["experts/balance_loss", "experts/z_loss", "experts/device_balance_loss"]


# Figures

LOAD = torch.tensor([[[2.0, 2, 2, 2], [6, 2, 0, 0]]])
DROPPED = torch.tensor([[0.0, 2.0]])


def test_figures_of_a_load():
    even, uneven = load_figures(np.full(4, 6.0), 0), load_figures(np.array([6.0, 2, 0, 0]), 2)
    assert even == (pytest.approx(1), 1, 0, 0)
    assert uneven == (pytest.approx(0.8112781 / 2), 3, 2, 0.25)  # bits of (3/4, 1/4), of 2
    assert load_figures(np.zeros(4), 0) == (0, 0, 4, 0), "nobody chose anybody"
    assert figures_of({"load": LOAD, "dropped": DROPPED})[0][1] == load_figures(LOAD[0, 1].double().numpy(), 2)


def test_what_is_logged_of_a_load():
    logged = metrics({"load": LOAD, "dropped": DROPPED}, ["semseg", "depth"], 2)
    assert logged["experts/entropy/block0/semseg"] == pytest.approx(1)
    assert logged["experts/entropy/block0/depth"] == pytest.approx(0.8112781 / 2)
    assert logged["experts/busiest/block0/depth"] == pytest.approx(3), "6 of 8 slots, and 2 were its share"
    assert (logged["experts/dead/block0/semseg"], logged["experts/dead/block0/depth"]) == (0, 2)
    assert (logged["experts/dropped/block0/semseg"], logged["experts/dropped/block0/depth"]) == (0, 0.25)
    assert logged["experts/rank_imbalance"] == pytest.approx(12 / 8)


def test_the_imbalance_between_ranks_is_that_of_all_their_experts():
    assert rank_imbalance(LOAD, 1) == 1
    assert rank_imbalance(LOAD, 2) == pytest.approx(12 / 8), "tasks: 4 and 4, 8 and 0 slots"
    assert rank_imbalance(LOAD, 4) == pytest.approx(8 / 4)
    assert rank_imbalance(torch.cat([LOAD, LOAD.flip(2)]), 2) == 1, "another block makes up for it"


def test_entropy_is_the_tokens_own_and_not_that_of_their_mean():
    """Half of the tokens are sure of one expert, half of the other: the load is even, and each token's entropy 0."""
    logits_TNE = torch.tensor([[[0.0, -1e9], [-1e9, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    terms = BalanceTerms.of(
        logits_TNE, logits_TNE.softmax(-1), torch.zeros(2, 2, 1, dtype=torch.long), with_entropy=True
    )
    losses, _ = auxiliary_losses([terms], Experts(balance_losses={"entropy": 0.5}), 1)
    weight, loss = losses["experts/entropy_loss"]
    assert weight == 0.5 and loss.item() == pytest.approx((0 + math.log(2)) / 2)


def test_every_router_tells_its_entropy():
    for name, router in ROUTERS.items():
        config = Experts(balance_losses={"entropy": 1.0}, count=4, split=1, top_k=2, router=name)
        balance = router(1, 2, config)(X).balance
        assert balance.entropy > 0 and balance.entropy.requires_grad
