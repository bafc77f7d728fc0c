"""Gates and selection against hand-computed values, the published formulas and the per-token oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.experts.routers import ROUTERS
from fgmoe_dist.experts.routers.image import ImageRouter
from fgmoe_dist.experts.routers.token import TokenRouter, keep_best_groups, over_capacity
from fgmoe_dist.experts.settings import Experts
from tests.experts import oracle


def routers(**settings) -> TokenRouter:
    """One task, two channels, four experts whose logits are x0 * (0, 1, 2, 3) + x1 * (3, 0, 0, 0)."""
    config = Experts(**{"count": 2, "split": 2, "top_k": 2, **settings})
    module = TokenRouter(1, 2, config)
    rows = [[0.0, 1.0, 2.0, 3.0], [3.0, 0.0, 0.0, 0.0]]
    if config.shared_gate == "joint":
        rows = [[*row, value] for row, value in zip(rows, (1.0, 0.5))]
    with torch.no_grad():
        module.weight_TCE.copy_(torch.tensor([rows]))
    return module


X = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # logits (0, 1, 2, 3) and (3, 0, 0, 0)


# Gates


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


def test_noise_only_in_training():
    noisy = routers(noise=50.0)
    noisy.eval()
    assert noisy(X).expert_TNK.equal(routers()(X).expert_TNK)
    noisy.train()
    torch.manual_seed(0)
    draws = {tuple(noisy(X).expert_TNK.flatten().tolist()) for _ in range(10)}
    assert len(draws) > 1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 3),
    options=st.fixed_dictionaries(
        {
            "renormalise": st.booleans(),
            "gate": st.sampled_from(["softmax", "sigmoid", "joint"]),
            "groups": st.sampled_from([1, 2, 4]),
            "max_ranks_per_token": st.integers(0, 4),
            "capacity_factor": st.sampled_from([0.0, 0.5, 1.0, 1.5]),
            "bias_update_rate": st.sampled_from([0.0, 0.2]),
            "router": st.sampled_from(["token", "image"]),
        }
    ),
)
def test_any_options_together_route_as_the_oracle(seed, images, options):
    options, generator = dict(options), torch.Generator().manual_seed(seed)
    gate = options.pop("gate")
    options |= {"shared_gate": "joint", "shared": 2} if gate == "joint" else {"score": gate}
    config = Experts(count=4, split=2, top_k=2, **options)
    module = ROUTERS[config.router](2, 3, config).double()
    x_TNC = torch.randn(2, images * 5, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        module.weight_TCE.normal_(generator=generator)
        if module.bias_TE is not None:
            module.bias_TE.normal_(std=0.3, generator=generator)
    routing = module(x_TNC, images)
    for t in range(2):
        bias_E = None if module.bias_TE is None else module.bias_TE[t]
        truth = oracle.route(x_TNC[t], module.weight_TCE[t], config, config.groups, images, bias_E)
        for n, pairs in enumerate(truth):
            slots = zip(routing.expert_TNK[t, n].tolist(), routing.weight_TNK[t, n].tolist())
            got = {e: weight for e, weight in slots if e >= 0 or weight != 0}
            assert got == pytest.approx({e: weight.item() for e, weight in pairs})
        dropped = 5 * images * config.top_k - sum(map(len, truth))
        assert routing.balance.dropped_T[t].item() == dropped
        assert routing.balance.load_TE[t].sum().item() == 5 * images * config.top_k


# Groups


def test_only_the_groups_of_the_best_experts_stay_open():
    scores = torch.tensor([[[0.1, 0.2, 0.9, 0.0, 0.3, 0.35, 0.25, 0.24]]])
    kept = keep_best_groups(scores, 4, 2)
    assert kept[0, 0].isfinite().tolist() == [False, False, True, True, True, True, False, False]
    assert kept[0, 0, 2:6].equal(scores[0, 0, 2:6])


def test_a_limited_token_takes_the_second_best_of_its_group():
    # Scores rise with the index: unlimited {3, 2} of one group; token 1 takes 0 first, then what is left beside it.
    config = dict(groups=2, max_ranks_per_token=1)
    assert routers(**config)(X).expert_TNK[0, 0].tolist() == [3, 2]
    assert routers(**config)(X).expert_TNK[0, 1].tolist() == [0, 1]


# Capacity


def test_the_highest_gates_of_an_image_stay_and_of_equals_the_earlier():
    config = Experts(count=2, split=1, top_k=1, capacity_factor=1.0)  # 3 slots, 2 experts: 2 an image
    weight = torch.tensor([[[0.5], [0.5], [0.5], [0.1], [0.3], [0.2]]])
    expert = torch.tensor([[[0], [0], [0], [1], [1], [1]]])
    assert over_capacity(weight, expert, config, 2)[0, :, 0].tolist() == [False, False, True, True, False, False]
    # As one image of six, an expert takes three.
    assert not over_capacity(weight, expert, config, 1).any()


def test_a_capacity_of_whole_slots_is_not_rounded_up():
    config = Experts(count=10, split=1, top_k=1, capacity_factor=1.1)  # 1.1 * 100 / 10 is 11.000000000000002
    full = over_capacity(torch.ones(1, 100, 1), torch.zeros(1, 100, 1, dtype=torch.long), config, 1)
    assert (~full).sum() == 11


def test_dropped_slots_count_as_load_but_carry_nothing():
    routing = routers(capacity_factor=0.5)(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]))  # both tokens choose 3, 2
    assert routing.expert_TNK[0].tolist() == [[-1, 2], [3, -1]]  # the second token's gate is higher for 3, lower for 2
    assert routing.weight_TNK[0].eq(0).tolist() == [[True, False], [False, True]]
    assert routing.balance.load_TE[0].tolist() == [0, 0, 2, 2]
    assert routing.balance.dropped_T.tolist() == [2]


# Bias


def test_a_bias_decides_who_is_chosen_and_never_the_gate():
    module = routers(score="sigmoid", bias_update_rate=0.25, renormalise=True)
    module.bias_TE[0] = torch.tensor([0.6, 0.0, 0.0, 0.0])  # sigmoid(0) + 0.6 > sigmoid(3) > sigmoid(2)
    routing = module(X)
    assert routing.expert_TNK[0, 0].tolist() == [0, 3]
    gates = [0.5, 1 / (1 + math.exp(-3))]
    assert routing.weight_TNK[0, 0].tolist() == pytest.approx([gate / sum(gates) for gate in gates])


def test_a_bias_moves_by_its_rate_against_the_load():
    module = routers(bias_update_rate=0.25)
    module.after_step(torch.tensor([[4.0, 2.0, 1.0, 1.0]]))
    assert module.bias_TE.tolist() == [[-0.25, 0.0, 0.25, 0.25]]
    module.after_step(torch.full((1, 4), 7.0))
    assert module.bias_TE.tolist() == [[-0.25, 0.0, 0.25, 0.25]]


def test_a_bias_alone_evens_out_the_load():
    torch.manual_seed(0)
    module = TokenRouter(1, 8, Experts(count=4, split=2, top_k=2, bias_update_rate=0.003, score="sigmoid"))
    x_TNC = torch.randn(1, 512, 8) + 1  # an offset that favours some experts
    before = module(x_TNC).balance.load_TE
    for _ in range(300):
        module.after_step(module(x_TNC).balance.load_TE)
    after = module(x_TNC).balance.load_TE
    assert before.max() > 2 * 128 and after.max() < 1.1 * 128, (before, after)


def test_a_bias_is_saved_and_stays_in_fp32():
    module = routers(bias_update_rate=1e-3)
    module.after_step(torch.tensor([[4.0, 2.0, 1.0, 1.0]]))
    cast = module.to(torch.bfloat16)
    assert cast.weight_TCE.dtype == torch.bfloat16
    assert cast.state_dict()["bias_TE"].tolist() == torch.tensor([[-1e-3, 0.0, 1e-3, 1e-3]]).tolist()
    assert "bias_TE" not in routers().state_dict()


# All tokens of an image together


def test_an_image_is_routed_by_the_mean_of_its_tokens_and_a_token_never_sees_another_image():
    module = ImageRouter(1, 2, Experts(count=2, split=2, top_k=2))
    with torch.no_grad():
        module.weight_TCE.copy_(routers().weight_TCE)
    x_TNC = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 0.5], [0.0, 1.5]]])  # means (1, 0) and (0, 1): those of X
    routing, by_token = module(x_TNC, 2), routers()(X)
    assert routing.expert_TNK[0].tolist() == [tokens for tokens in by_token.expert_TNK[0].tolist() for _ in range(2)]
    assert routing.weight_TNK[0, ::2].equal(by_token.weight_TNK[0])
    assert routing.balance.load_TE.equal(2 * by_token.balance.load_TE), "tokens are counted, not images"
    torch.testing.assert_close(routing.balance.z, 2 * by_token.balance.z)


def test_noise_on_an_image_is_the_same_for_its_tokens():
    torch.manual_seed(0)
    module = ImageRouter(2, 3, Experts(count=4, split=2, top_k=2, noise=5.0)).train()
    routing = module(torch.randn(2, 12, 3), 3)
    chosen = routing.expert_TNK.unflatten(1, (3, 4))
    assert (chosen == chosen[:, :, :1]).all() and not (chosen == chosen[:, :1]).all()


@pytest.mark.parametrize("name", ROUTERS)
def test_a_rank_without_images_routes_nothing_and_has_every_gradient(name):
    module = ROUTERS[name](2, 3, Experts(count=4, split=2, top_k=2))
    routing = module(torch.empty(2, 0, 3), 0)
    slots = 8 if name == "expert" else 2
    assert routing.weight_TNK.shape == routing.expert_TNK.shape == (2, 0, slots)
    (routing.weight_TNK.sum() + routing.balance.score_TE.sum()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
