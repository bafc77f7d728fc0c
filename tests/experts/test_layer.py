"""The routed experts over ranks: outputs, gradients and traffic, against the float64 loop over single tokens."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.config import Experts
from fgmoe_dist.experts.bank import WEIGHTS, initial_expert
from tests.experts.oracle import routed_experts
from tests.ranks import run_ranks

C, SEED = 16, 7
SETTINGS = dict(count=4, split=2, hidden=32, top_k=3, balance_weight=0.0)
WORLD = 4
UNEQUAL = (5, 0, 9, 3)  # tokens a task on each rank; one rank has none


def tokens_of(rank: int, tasks: int, counts) -> torch.Tensor:
    return torch.randn(tasks, counts[rank], C, generator=torch.Generator().manual_seed(rank))


def on_rank(tasks: int, ep_size: int, settings: dict, counts) -> dict:
    """Forward and backward of one layer; everything a test compares, as plain numbers."""
    import torch.distributed as dist

    from fgmoe_dist.experts.layer import MoE, create_routed_experts

    torch.manual_seed(0)
    layer = create_routed_experts(tasks, C, Experts(**settings), ep_size, block=0, seed=SEED)
    for module in layer.modules():
        if isinstance(module, MoE):
            module.set_deepspeed_parallelism()
    calls, plain = [], dist.all_to_all_single

    def counted(output, input, *args, **kwargs):
        calls.append(input.numel() * input.element_size())
        return plain(output, input, *args, **kwargs)

    dist.all_to_all_single = counted
    x_TNC = tokens_of(dist.get_rank(), tasks, counts).requires_grad_()
    journey = layer.dispatch(x_TNC)
    layer.compute(journey)
    y_TNC = layer.combine(journey)
    forward_calls = len(calls)
    y_TNC.square().sum().backward()
    gradients = {}
    for e in layer.logical_experts():
        gradient = e.parameter.grad
        gradients[e.task, e.expert, e.weight] = (gradient if e.index is None else gradient[e.index]).tolist()
    router = layer.routers.weight_TCE.grad.tolist() if hasattr(layer, "routers") else None
    return {
        "y": y_TNC.tolist(), "x": x_TNC.grad.tolist(), "experts": gradients, "router": router,
        "forward_calls": forward_calls, "calls": len(calls), "bytes": sum(calls),
    }  # fmt: skip


def truth(tasks: int, settings: dict, counts) -> tuple[list, list, dict, torch.Tensor]:
    from fgmoe_dist.experts.router import Routers

    config = Experts(**settings)
    torch.manual_seed(0)
    router = Routers(tasks, C, config).weight_TCE.detach().double().requires_grad_()
    weights = {}
    for t in range(tasks):
        for e in range(config.routed):
            first = initial_expert(C, config.fine_hidden, SEED, "block", 0, t, e)
            weights[t, e] = [first[name].double().requires_grad_() for name in WEIGHTS]
    xs = [tokens_of(rank, tasks, counts).double().requires_grad_() for rank in range(len(counts))]
    ys = [routed_experts(x, router, weights, config) for x in xs]
    sum(y.square().sum() for y in ys).backward()
    gradients = {
        (t, e, name): torch.zeros_like(w) if w.grad is None else w.grad
        for (t, e), four in weights.items()
        for name, w in zip(WEIGHTS, four)
    }
    return ys, [x.grad for x in xs], gradients, router.grad


def close(mine, theirs, what):
    mine = torch.tensor(mine, dtype=torch.float64).reshape(theirs.shape)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=lambda text: f"{what}: {text}")


def compare(answers, tasks, settings, counts):
    ys, xs, experts, router = truth(tasks, settings, counts)
    for rank, answer in enumerate(answers):
        close(answer["y"], ys[rank], f"output of rank {rank}")
        close(answer["x"], torch.zeros_like(ys[rank]) if xs[rank] is None else xs[rank], f"gradient of x, rank {rank}")
    for key, theirs in experts.items():
        copies = [torch.tensor(answer["experts"][key]).double() for answer in answers if key in answer["experts"]]
        close(sum(copies).tolist(), theirs, f"gradient of expert {key}")
    if answers[0]["router"] is not None:
        close(sum(torch.tensor(answer["router"]).double() for answer in answers).tolist(), router, "router")


@pytest.mark.parametrize("ep_size", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"renormalise": True}, {"score": "sigmoid"}, {"kernel": "grouped"}])
def test_fused_is_the_loop(ep_size, options):
    settings = {**SETTINGS, **options}
    compare(run_ranks(WORLD, on_rank, 3, ep_size, settings, UNEQUAL), 3, settings, UNEQUAL)


@pytest.mark.parametrize("ep_size", [1, 4])
@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_k": 2, "renormalise": True}, {"top_k": 1}])
def test_deepspeeds_own_layers_are_the_loop(ep_size, options):
    settings, counts = {**SETTINGS, **options, "backend": "deepspeed"}, (6, 6, 6, 6)
    compare(run_ranks(WORLD, on_rank, 2, ep_size, settings, counts), 2, settings, counts)


def test_fairscales_own_layer_is_the_loop_where_nothing_is_dropped_and_no_second_expert_drawn():
    # With two experts and top-2 every token goes to both, whatever the draw, within the capacity of 2 N / E.
    settings = dict(count=2, split=1, hidden=16, top_k=2, renormalise=True, backend="fairscale")
    counts = (8, 8)
    compare(run_ranks(2, on_rank, 2, 2, settings, counts), 2, settings, counts)


@pytest.mark.parametrize("tasks", [1, 5])
def test_one_exchange_out_and_one_back_whatever_the_number_of_tasks(tasks):
    answers = run_ranks(2, on_rank, tasks, 2, SETTINGS, (6, 6))
    assert [answer["forward_calls"] for answer in answers] == [3, 3]  # counts, out, back
    assert [answer["calls"] for answer in answers] == [5, 5]  # and the gradients', back and out


def test_a_token_crosses_to_a_rank_once():
    # All 8 experts are chosen, so each of 6 tokens must reach both ranks: 12 rows, not 6 * 8.
    settings = {**SETTINGS, "top_k": 8}
    (answer, _) = run_ranks(2, on_rank, 1, 2, settings, (6, 6))
    k, rows = 8, 12
    out, back, counts = rows * (4 * C + 4 * k + 4 * k), rows * 4 * C, 2 * 8
    gradients = rows * 4 * C + rows * (4 * C + 4 * k)
    assert answer["bytes"] == counts + out + back + gradients
