"""Gates and balance against hand-computed values and the published formulas."""

from __future__ import annotations

import math

import pytest
import torch

from fgmoe_dist.config import Experts
from fgmoe_dist.experts.router import BalanceTerms, Routers


def routers(**settings) -> Routers:
    """One task, two channels, four experts whose logits are x0 * (0, 1, 2, 3) + x1 * (3, 0, 0, 0)."""
    config = Experts(**{"count": 2, "split": 2, "top_k": 2, **settings})
    module = Routers(1, 2, config)
    rows = [[0.0, 1.0, 2.0, 3.0], [3.0, 0.0, 0.0, 0.0]]
    if config.shared_gate == "joint":
        rows = [[*row, value] for row, value in zip(rows, (1.0, 0.5))]
    with torch.no_grad():
        module.weight_TCE.copy_(torch.tensor([rows]))
    return module


X = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # logits (0, 1, 2, 3) and (3, 0, 0, 0)


def test_softmax_scores_are_kept_as_they_are():
    routing = routers()(X)
    total = sum(math.exp(i) for i in range(4))
    assert routing.expert_TNK[0, 0].tolist() == [3, 2]
    torch.testing.assert_close(routing.weight_TNK[0, 0], torch.tensor([math.exp(3) / total, math.exp(2) / total]))


def test_renormalised_gates_sum_to_one():
    routing = routers(renormalise=True)(X)
    torch.testing.assert_close(routing.weight_TNK.sum(-1), torch.ones(1, 2))
    assert routing.weight_TNK[0, 0, 0].item() == pytest.approx(math.e / (1 + math.e))


def test_sigmoid_scores():
    routing = routers(score="sigmoid")(X)
    assert routing.weight_TNK[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))])


def test_joint_gate_is_one_softmax_over_selected_and_shared_logits():
    routing = routers(shared_gate="joint", shared=1)(X)
    parts = [math.exp(3), math.exp(2), math.exp(1)]  # the two selected, then the shared one
    got = [*routing.weight_TNK[0, 0].tolist(), *routing.shared_TNS[0, 0].tolist()]
    assert got == pytest.approx([part / sum(parts) for part in parts])


def test_balance_loss_is_one_when_even_and_e_over_k_when_all_go_to_the_same():
    even = BalanceTerms(torch.full((1, 4), 5.0), torch.full((1, 4), 0.25), torch.tensor(0.0))
    assert even.loss(even.load_TE).item() == pytest.approx(1.0)
    one = BalanceTerms(torch.tensor([[7.0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor(0.0))
    assert one.loss(one.load_TE).item() == pytest.approx(4.0)


def test_balance_loss_by_hand():
    # Two tokens choose {3, 2} and {0, 1 (first of the ties)}: f = E / (K N) * load = 4 / (2 * 2) * (1, 1, 1, 1).
    balance = routers()(X).balance
    assert balance.load_TE.sum().item() == 4
    assert balance.loss(balance.load_TE).item() == pytest.approx(
        sum(load * p for load, p in zip(balance.load_TE[0].tolist(), balance.importance_TE[0].tolist()))
    )
    z = [math.log(sum(math.exp(i) for i in range(4))), math.log(math.exp(3) + 3)]
    assert balance.z.item() == pytest.approx((z[0] ** 2 + z[1] ** 2) / 2)


def test_noise_only_in_training():
    noisy = routers(noise=50.0)
    noisy.eval()
    assert noisy(X).expert_TNK.equal(routers()(X).expert_TNK)
    noisy.train()
    torch.manual_seed(0)
    draws = {tuple(noisy(X).expert_TNK.flatten().tolist()) for _ in range(10)}
    assert len(draws) > 1
