"""What a router can be told besides: tasks, noise that it learns, closed experts, and experts that choose.

Legend: T tasks, N tokens per task, C channels, E experts of a task.
"""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
import torch

from fgmoe_dist.config import load_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.backends.fused import FusedExperts
from fgmoe_dist.experts.balance import auxiliary_losses
from fgmoe_dist.experts.diversity import diversity
from fgmoe_dist.experts.kinds.ffn import FFN
from fgmoe_dist.experts.routers import ROUTERS, Routing
from fgmoe_dist.experts.routers.closing import closed_experts, open_to_fewest
from fgmoe_dist.experts.routers.token import TokenRouter, chance_to_be_selected
from fgmoe_dist.experts.settings import Experts
from tests.decoders.tiny import configuration, levels, tiny_decoder
from tests.experts import oracle
from tests.ranks import run_ranks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
T, N, C, E = 3, 10, 6, 8
X_TNC = torch.randn(T, N, C, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def router(**settings) -> TokenRouter:
    config = Experts(**{"count": 4, "split": 2, "top_k": 2, **settings})
    module = ROUTERS[config.router](T, C, config).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def alike(first: Routing, second: Routing) -> None:
    assert first.expert_TNK.equal(second.expert_TNK)
    torch.testing.assert_close(first.weight_TNK, second.weight_TNK)


def routed_by(logits_TNE: torch.Tensor, routing: Routing) -> None:
    """Softmax scores of the two best."""
    weight_TNK, expert_TNK = logits_TNE.softmax(-1).topk(2)
    assert expert_TNK.equal(routing.expert_TNK)
    torch.testing.assert_close(weight_TNK, routing.weight_TNK)


# Told the task


def test_an_embedding_is_beside_the_token_and_the_router_is_all_tasks():
    module = router(condition="embedding")
    parts = module.conditioned
    weight_XE = torch.cat([parts.weight_CE, parts.weight_DE])
    beside = parts.embedding_TD[:, None].expand(-1, N, -1)
    routed_by(torch.cat([X_TNC, beside], 2) @ weight_XE, module(X_TNC))
    assert [p is parts.embedding_TD for p in parts.own_parameters()] == [True] and not list(module.own_parameters())


def test_a_film_scales_and_shifts_what_the_router_reads():
    module = router(condition="film")
    parts = module.conditioned
    read = torch.stack([x_NC * (1 + g) + b for x_NC, g, b in zip(X_TNC, parts.gamma_TC, parts.beta_TC)])
    routed_by(read @ parts.weight_CE, module(X_TNC))


def test_a_film_of_nothing_is_a_plain_router():
    film, plain = TokenRouter(T, C, Experts(condition="film")).double(), TokenRouter(T, C, Experts()).double()
    with torch.no_grad():
        plain.weight_TCE.copy_(film.conditioned.weight_CE.expand(T, -1, -1))
    alike(film(X_TNC), plain(X_TNC))


def test_first_weights_of_zero():
    assert not TokenRouter(T, C, Experts(router_init="zero")).weight_TCE.any()
    film = TokenRouter(T, C, Experts(router_init="zero", condition="film"))
    assert not film.conditioned.weight_CE.any()


def test_a_scale_is_a_factor_on_gates():
    module = router(gate_scale=3.0, renormalise=True)
    torch.testing.assert_close(module(X_TNC).weight_TNK.sum(-1), torch.full((T, N), 3.0).double())


# Noise


@pytest.mark.parametrize("kind", ["raw", "softplus"])
def test_learnt_noise_is_in_the_logits_of_training_alone(kind):
    module = router(noise=0.5, noise_kind=kind)
    logits_TNE = X_TNC @ module.weight_TCE
    routed_by(logits_TNE, module.eval()(X_TNC))
    deviation_TNE = X_TNC @ module.noise_TCE
    if kind == "softplus":
        deviation_TNE = (1 + deviation_TNE.exp()).log() + 0.01
    torch.manual_seed(7)
    drawn_TNE = torch.randn_like(logits_TNE)
    torch.manual_seed(7)
    routed_by(logits_TNE + 0.5 * deviation_TNE * drawn_TNE, module.train()(X_TNC))


def test_the_router_learns_its_noise_from_nothing():
    module = TokenRouter(T, C, Experts(count=4, split=2, top_k=2, noise=1.0, noise_kind="raw")).double()
    module(X_TNC).weight_TNK.sum().backward()
    assert not module.noise_TCE.any() and module.noise_TCE.grad.any()


def test_the_chance_to_be_selected_is_how_often_it_would_be():
    clean_E, deviation_E = torch.randn(E).double(), torch.rand(E).double() + 0.5
    by_E = clean_E + deviation_E * torch.randn(E)
    chance_E = chance_to_be_selected(*(x[None, None] for x in (clean_E, by_E, deviation_E)), 3)[0, 0]
    for e in range(E):
        anew_SE = by_E.repeat(20_000, 1)
        anew_SE[:, e] = clean_E[e] + deviation_E[e] * torch.randn(20_000).double()
        often = (anew_SE.topk(3).indices == e).any(1).double().mean()
        assert chance_E[e].item() == pytest.approx(often.item(), abs=0.02)
    assert chance_to_be_selected(clean_E[None, None], by_E[None, None], 1.0, E).eq(1).all()


@pytest.mark.parametrize("noise_kind", ["fixed", "softplus"])
def test_the_load_that_noise_makes_likely_is_differentiable(noise_kind):
    module = router(noise=1.0, noise_kind=noise_kind, balance_losses={"load": 1.0})
    losses, _ = auxiliary_losses([module(X_TNC).balance], module.config, 1)
    losses["experts/load_loss"][1].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert module.eval()(X_TNC).balance.chance_TE is None


# Closed experts


def test_an_exclusive_expert_is_one_task_s_and_an_excluded_one_all_others():
    for closing in ("exclusive", "excluded"):
        config = Experts(count=4, split=2, closed_share=0.5, closing=closing)
        closed_TE = closed_experts(config, T, 5, 0)
        number_E = closed_TE.sum(0)
        assert sorted(number_E.tolist()) == [0] * 4 + [T - 1 if closing == "exclusive" else 1] * 4
        assert closed_TE.equal(closed_experts(config, T, 5, 0)) and not closed_TE.equal(closed_experts(config, T, 6, 0))
        assert open_to_fewest(config, T, 5, 1) == E - closed_TE.sum(1).max()
    assert closed_experts(Experts(), T, 5, 0) is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score": "sigmoid", "bias_update_rate": 0.1},
        {"router": "image"},
        {"router": "expert"},
        {"noise": 1.0, "balance_losses": {"load": 1.0}},
    ],
)
def test_a_closed_expert_has_no_gate_and_no_gradient(settings):
    config = Experts(count=4, split=2, top_k=2, bank="shared", closed_share=0.5, z_weight=1.0, **settings)
    layer = FusedExperts(T, C, config, 1, 0, 5).double()
    closed_TE = closed_experts(config, T, 5, 0)
    if layer.routers.bias_TE is not None:
        layer.routers.bias_TE += 10.0 * closed_TE
    routing = layer.routers(X_TNC, 2)
    for t, closed_E in enumerate(closed_TE):
        assert not set(routing.expert_TNK[t].flatten().tolist()) & set(closed_E.nonzero().flatten().tolist())
    assert not routing.balance.score_TE[closed_TE].any() and not routing.balance.load_TE[closed_TE].any()
    losses, _ = auxiliary_losses([routing.balance], config, 1)
    (sum(loss for _, loss in losses.values()) + routing.weight_TNK.square().sum()).backward()
    gradient_TEC = layer.routers.weight_TCE.grad.transpose(1, 2)
    assert gradient_TEC.isfinite().all() and not gradient_TEC[closed_TE].any() and gradient_TEC[~closed_TE].any()


# Experts that choose


def test_each_expert_takes_its_best_tokens_of_an_image():
    module, images = router(router="expert", renormalise=True), 2
    routing, size = module(X_TNC, images), N // images
    score_TNE = (X_TNC @ module.weight_TCE).softmax(-1)
    taken = {(t, n): [] for t in range(T) for n in range(N)}
    for t in range(T):
        for e in range(E):
            for first in range(0, N, size):
                order = sorted(range(first, first + size), key=lambda n: -score_TNE[t, n, e].item())
                for n in order[: max(1, 2 * size // E)]:
                    taken[t, n].append(e)
    for (t, n), experts in taken.items():
        assert [e for e in routing.expert_TNK[t, n].tolist() if e >= 0] == experts
        gates = score_TNE[t, n, experts]
        torch.testing.assert_close(routing.weight_TNK[t, n, experts], gates / gates.sum())
        assert routing.weight_TNK[t, n].sum().item() == pytest.approx(1 if experts else 0)
    assert routing.balance.load_TE.eq(images).all(), "one token of each image"


def test_a_prediction_of_expert_choice_is_its_image_s_alone():
    module = router(router="expert")
    both, (first, second) = module(X_TNC, 2), (module(part, 1) for part in X_TNC.chunk(2, dim=1))
    assert both.expert_TNK.equal(torch.cat([first.expert_TNK, second.expert_TNK], 1))


# Losses of a bank that tasks share


def share_out(score_TE: list[list[float]]) -> dict[str, float]:
    """Losses where each token of a task has these scores."""
    config = Experts(count=2, split=2, top_k=1, balance_losses={"mutual_information": 1.0, "importance": 1.0})
    module = TokenRouter(len(score_TE), len(score_TE[0]), config)
    with torch.no_grad():
        module.weight_TCE.copy_(torch.tensor(score_TE).clamp(min=1e-30).log()[:, None].expand(-1, 4, -1) / 4)
    routing = module(torch.ones(len(score_TE), 5, 4))
    return {name: loss.item() for name, (_, loss) in auxiliary_losses([routing.balance], config, 1)[0].items()}


def test_information_is_that_of_task_and_expert():
    apart = share_out([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])["experts/mutual_information_loss"]
    alike = share_out([[0.4, 0.3, 0.2, 0.1]] * 3)["experts/mutual_information_loss"]
    assert apart == pytest.approx(-math.log(3), abs=2e-3) and alike == pytest.approx(0, abs=2e-3)
    shares = [[0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3]]
    joint = [[p / 2 for p in row] for row in shares]
    by_expert = [sum(column) for column in zip(*joint)]
    by_hand = -sum(p * math.log(p / (0.5 * q)) for row in joint for p, q in zip(row, by_expert))
    assert share_out(shares)["experts/mutual_information_loss"] == pytest.approx(by_hand, abs=2e-3)


def test_importance_is_the_variation_of_kept_gates():
    assert share_out([[0.25] * 4])["experts/importance_loss"] == pytest.approx(4), "ties: all take one expert"
    module = router(balance_losses={"importance": 1.0})
    routing = module(X_TNC)
    found = auxiliary_losses([routing.balance], module.config, 1)[0]["experts/importance_loss"][1].item()
    variations = []
    for t in range(T):
        sums = [0.0] * E
        for gates, experts in zip(routing.weight_TNK[t].tolist(), routing.expert_TNK[t].tolist()):
            for gate, e in zip(gates, experts):
                sums[e] += gate
        mean = sum(sums) / E
        variations.append(sum((s - mean) ** 2 for s in sums) / (E - 1) / mean**2)
    assert found == pytest.approx(sum(variations) / T)


# What does not go together


@pytest.mark.parametrize(
    ("experts", "line"),
    [
        (
            {"global_input": "tasks", "global_experts": 0},
            "experts.global_input=tasks: experts.global_experts=0 are none",
        ),
        ({"noise_kind": "raw"}, "experts.noise_kind=raw: experts.noise=0 is its factor; set experts.noise=1"),
        ({"router": "expert", "capacity_factor": 1.5}, "experts.capacity_factor=1.5: experts.router=expert selects no"),
        ({"closed_share": 0.5}, "experts.closed_share=0.5: closes experts that tasks share; set experts.bank=shared"),
        ({"balance_losses": {"mutual_information": 0.1}}, "mutual_information: of tasks and the experts that they"),
        ({"bank": "shared", "closed_share": 0.9, "top_k": 4}, "leaves a task 2 of the 8 routed experts"),
        ({"bank": "shared", "closed_share": 0.5, "max_ranks_per_token": 1, "groups": 2}, "without an open expert"),
        ({"backend": "deepspeed", "condition": "film"}, "experts.condition=film needs experts.backend=fused"),
    ],
)
def test_what_does_not_go_together_is_one_line(experts, line):
    with pytest.raises(UserError) as caught:
        configuration("fgmoe", {"experts": experts})
    assert line in str(caught.value)


# How differently experts answer


def diversity_here(ep_size: int, bank: str) -> float:
    config = Experts(count=4, split=2, top_k=2, hidden=8, bank=bank, closed_share=0.25 if bank == "shared" else 0)
    return diversity(FusedExperts(T, C, config, ep_size, 0, 5).double(), X_TNC.clone()).item()


@pytest.mark.parametrize("bank", ["task", "shared"])
def test_diversity_is_the_mean_distance_of_answers_on_any_ranks(bank):
    config = Experts(count=4, split=2, top_k=2, hidden=8, bank=bank, closed_share=0.25 if bank == "shared" else 0)
    closed_TE = closed_experts(config, T, 5, 0)
    total, number = 0.0, 0
    for t in range(T):
        choice = [e for e in range(E) if closed_TE is None or not closed_TE[t, e]]
        answers = {}
        for e in choice:
            first = FFN().initial(C, 4, 5, "block", 0, None if bank == "shared" else t, e)
            answers[e] = oracle.fine_expert(X_TNC[t], *(weight.double() for weight in first.values()))
        pairs = [(answers[i] - answers[j]).norm(dim=1).mean().item() for i, j in combinations(choice, 2)]
        total, number = total + sum(pairs) / len(pairs), number + 1
    assert diversity_here(1, bank) == pytest.approx(total / number, rel=1e-5)
    assert run_ranks(2, diversity_here, 2, bank) == pytest.approx([total / number] * 2, rel=1e-5)


# Presets


@pytest.mark.parametrize("name", ["mod_squad", "m3vit", "ase", "t_rex", "mmoeex"])
def test_a_preset_is_a_bank_that_tasks_share_and_trains(name):
    published = load_config(CONFIGS / f"decoders/{name}.yaml")
    assert published.experts.bank == "shared" and not published.experts.global_experts
    small = {**published.experts.model_dump(), "hidden": published.experts.split * 2}
    if published.experts.kind == "rank_one":
        small["hidden"] = published.experts.split
    decoder = tiny_decoder("fgmoe", {"experts": small})
    output = decoder(levels())
    auxiliary = decoder.auxiliary(output)
    total = sum(prediction.square().mean() for prediction in output.predictions.values())
    (total + sum(weight * loss for weight, loss in auxiliary.losses.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert ("experts/diversity/block0" in decoder.metrics(auxiliary.counts)) == (name == "mmoeex")
