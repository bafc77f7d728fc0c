"""The routed experts over ranks: outputs, gradients and traffic, against the float64 loop over single tokens."""

from __future__ import annotations

from functools import cache
from typing import Optional

import pytest
import torch

from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.settings import Experts
from tests.experts.oracle import routed_experts
from tests.ranks import run_ranks

C, SEED = 16, 7
SETTINGS = dict(count=4, split=2, hidden=32, top_k=3, balance_weight=0.0)
WORLD = 4
UNEQUAL = (6, 0, 9, 3)  # tokens a task on each rank; one rank has none
IMAGE = 3  # tokens


def tokens_of(rank: int, tasks: int, counts) -> torch.Tensor:
    return torch.randn(tasks, counts[rank], C, generator=torch.Generator().manual_seed(rank))


def first_bias(tasks: int, experts: int) -> torch.Tensor:
    return 0.2 * torch.randn(tasks, experts, generator=torch.Generator().manual_seed(77))


def first_weights(config: Experts, task: Optional[int], expert: int) -> list[torch.Tensor]:
    """Those that start at zero are drawn too, or a mistake in them would not show."""
    generator = torch.Generator().manual_seed(31 * expert + (task or 0))
    first = KINDS[config.kind].initial(C, config.fine_hidden, SEED, "block", 0, task, expert)
    return [value if value.any() else 0.1 * torch.randn(value.shape, generator=generator) for value in first.values()]


def layer_on_rank(tasks: int, ep_size: int, settings: dict):
    from fgmoe_dist.experts.backends import create_routed_experts

    torch.manual_seed(0)
    layer = create_routed_experts(tasks, C, Experts(**settings), ep_size, block=0, seed=SEED)
    with torch.no_grad():
        for e in layer.logical_experts():
            value = dict(zip(layer.kind.weights, first_weights(layer.config, e.task, e.expert)))[e.weight]
            (e.parameter if e.index is None else e.parameter[e.index]).copy_(value)
    if settings.get("bias_update_rate"):
        layer.routers.bias_TE.copy_(first_bias(tasks, layer.num_experts))
    return layer


def run_layer(layer, x_TNC: torch.Tensor):
    """Its output, and the journey."""
    journey = layer.dispatch(x_TNC, x_TNC.shape[1] // IMAGE)
    layer.compute(journey)
    return layer.combine(journey), journey


def on_rank(tasks: int, ep_size: int, settings: dict, counts, dtype=torch.float32) -> dict:
    """Forward and backward of one layer; everything a test compares, as plain numbers."""
    import torch.distributed as dist

    layer = layer_on_rank(tasks, ep_size, settings).to(dtype)
    calls, plain = [], dist.all_to_all_single

    def counted(output, input, *args, **kwargs):
        calls.append(input.numel() * input.element_size())
        return plain(output, input, *args, **kwargs)

    dist.all_to_all_single = counted
    try:
        x_TNC = tokens_of(dist.get_rank(), tasks, counts).to(dtype).requires_grad_()
        y_TNC, journey = run_layer(layer, x_TNC)
        forward_calls = len(calls)
        y_TNC.square().sum().backward()
    finally:
        dist.all_to_all_single = plain
    gradients = {}
    for e in layer.logical_experts():
        gradient = e.parameter.grad
        gradients[e.task, e.expert, e.weight] = (gradient if e.index is None else gradient[e.index]).tolist()
    return {
        "y": y_TNC.tolist(), "x": x_TNC.grad.tolist(), "experts": gradients,
        "router": layer.routers.weight_TCE.grad.tolist() if hasattr(layer, "routers") else None,
        "rows": [] if journey.route is None else journey.route.token_M.bincount().tolist(),
        "forward_calls": forward_calls, "calls": len(calls), "bytes": sum(calls),
    }  # fmt: skip


def each_on_rank(tasks: int, ep_size: int, many: list[dict], counts) -> list[dict]:
    return [on_rank(tasks, ep_size, settings, counts) for settings in many]


@cache
def truth(tasks: int, options: tuple, counts) -> tuple[list, list, dict, torch.Tensor]:
    from fgmoe_dist.experts.routers.token import TokenRouter

    config = Experts(**dict(options))
    torch.manual_seed(0)
    router = TokenRouter(tasks, C, config).weight_TCE.detach().double().requires_grad_()
    bias = first_bias(tasks, config.routed) if config.bias_update_rate else None
    weights, kind = {}, KINDS[config.kind]
    for t in [None] if config.bank == "shared" else range(tasks):
        for e in range(config.routed):
            weights[t, e] = [value.double().requires_grad_() for value in first_weights(config, t, e)]
    xs = [tokens_of(rank, tasks, counts).double().requires_grad_() for rank in range(len(counts))]
    ys = [routed_experts(x, router, weights, config, config.groups or 1, x.shape[1] // IMAGE, bias) for x in xs]
    sum(y.square().sum() for y in ys).backward()
    gradients = {
        (t, e, name): torch.zeros_like(w) if w.grad is None else w.grad
        for (t, e), values in weights.items()
        for name, w in zip(kind.weights, values)
    }
    return ys, [x.grad for x in xs], gradients, router.grad


def close(mine, theirs, what):
    mine = torch.tensor(mine, dtype=torch.float64).reshape(theirs.shape)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=lambda text: f"{what}: {text}")


def compare(answers, tasks, settings, counts):
    ys, xs, experts, router = truth(tasks, tuple(sorted(settings.items())), counts)
    for rank, answer in enumerate(answers):
        close(answer["y"], ys[rank], f"output of rank {rank}")
        close(answer["x"], torch.zeros_like(ys[rank]) if xs[rank] is None else xs[rank], f"gradient of x, rank {rank}")
    for key, theirs in experts.items():
        copies = [torch.tensor(answer["experts"][key]).double() for answer in answers if key in answer["experts"]]
        close(sum(copies).tolist(), theirs, f"gradient of expert {key}")
    if answers[0]["router"] is not None:
        close(sum(torch.tensor(answer["router"]).double() for answer in answers).tolist(), router, "router")


OPTIONS = [
    {},
    {"kernel": "grouped"},
    {"score": "sigmoid", "renormalise": True},
    {"shared_gate": "joint", "shared": 2},
    {"groups": 4, "max_ranks_per_token": 2},
    {"bias_update_rate": 0.1, "score": "sigmoid"},
    {"capacity_factor": 1.0},
    {"capacity_factor": 0.7, "groups": 4, "max_ranks_per_token": 2, "bias_update_rate": 0.1, "renormalise": True},
    {"bank": "shared"},
    {"bank": "shared", "capacity_factor": 0.7, "groups": 4, "max_ranks_per_token": 2, "kernel": "reference"},
    {"router": "image", "renormalise": True},
    {"kind": "lora"},
    {"kind": "lora", "bank": "shared", "router": "image", "shared_gate": "joint", "shared": 2},
]


@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_fused_is_the_loop(ep_size):
    """The same for every ep_size, `experts.groups` deciding who shares a device."""
    many = [{**SETTINGS, **options} for options in OPTIONS]
    for settings, *answers in zip(many, *run_ranks(WORLD, each_on_rank, 3, ep_size, many, UNEQUAL)):
        compare(answers, 3, settings, UNEQUAL)
        limit = settings.get("max_ranks_per_token", ep_size)
        assert max((rows for answer in answers for rows in answer["rows"]), default=0) <= limit, settings
        if ep_size == 4 and settings == SETTINGS:  # or the limit of 2 would say nothing
            assert max(rows for answer in answers for rows in answer["rows"]) == 3


@pytest.mark.parametrize("ep_size", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"top_k": 2, "kind": "lora"},
        pytest.param({"top_k": 2, "renormalise": True}, marks=pytest.mark.slow),
        {"top_k": 1},
    ],
)
def test_deepspeeds_own_layers_are_the_loop(ep_size, options):
    settings, counts = {**SETTINGS, **options, "backend": "deepspeed"}, (6, 6, 6, 6)
    compare(run_ranks(WORLD, on_rank, 2, ep_size, settings, counts), 2, settings, counts)


def test_fairscales_own_layer_is_the_loop_where_nothing_is_dropped_and_no_second_expert_drawn():
    # With two experts and top-2 every token goes to both, whatever the draw, within the capacity of 2 N / E.
    settings = dict(count=2, split=1, hidden=16, top_k=2, renormalise=True, backend="fairscale")
    counts = (8, 8)
    compare(run_ranks(2, on_rank, 2, 2, settings, counts), 2, settings, counts)


def fairscales_drops(tokens: int) -> list[float]:
    layer = layer_on_rank(1, 1, dict(count=4, split=1, hidden=16, top_k=2, renormalise=True, backend="fairscale"))
    gate = layer.layers[0].gate.wg
    gate.weight.data = torch.tensor([[30.0], [10.0], [-10.0], [-10.0]]).expand(4, C) / C
    _, journey = run_layer(layer.eval(), torch.ones(1, tokens, C))
    return journey.routing.balance.dropped_T.tolist()


def test_what_fairscales_own_layer_drops_is_counted():
    # All tokens want experts 0 and 1, which take 2 N / E = N / 2 each; two of the eight rows are padding.
    assert run_ranks(1, fairscales_drops, 6) == [[2 * (6 - 4)]]


@pytest.mark.parametrize("tasks", [1, 5])
def test_one_exchange_out_and_one_back_whatever_the_number_of_tasks(tasks):
    answers = run_ranks(2, on_rank, tasks, 2, SETTINGS, (6, 6))
    assert [answer["forward_calls"] for answer in answers] == [3, 3]  # counts, out, back
    assert [answer["calls"] for answer in answers] == [5, 5]  # and the gradients', back and out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_crosses_to_a_rank_once_and_in_its_own_precision(dtype):
    # All 8 experts are chosen, so each of 6 tokens must reach the other rank: 6 rows, not 6 * 4; its own do not travel.
    settings = {**SETTINGS, "top_k": 8}
    (answer, _) = run_ranks(2, on_rank, 1, 2, settings, (6, 6), dtype)
    k, rows, token = 8, 6, C * dtype.itemsize  # gates stay in fp32
    out, back, counts = rows * (token + 4 * k + 4 * k), rows * token, 2 * 8
    gradients = rows * token + rows * (token + 4 * k)
    assert answer["bytes"] == counts + out + back + gradients


def symmetries(settings: dict) -> dict[str, float]:
    """Of a layer on ranks: by how much its output changes where it must not."""
    import torch.distributed as dist

    layer = layer_on_rank(3, 2, settings).eval()
    x_TNC = tokens_of(dist.get_rank(), 3, (6, 9))
    with torch.no_grad():
        y_TNC, _ = run_layer(layer, x_TNC)
        again, _ = run_layer(layer, x_TNC)
        order_N = torch.randperm(x_TNC.shape[1])
        tokens, _ = run_layer(layer, x_TNC[:, order_N])
        order_T = torch.tensor([2, 0, 1])
        layer.routers.weight_TCE.copy_(layer.routers.weight_TCE[order_T].clone())
        for stack in layer.bank.parameters():
            stack.copy_(stack.unflatten(0, (3, -1))[order_T].flatten(0, 1).clone())
        tasks, _ = run_layer(layer, x_TNC[order_T])
    return {
        "repeats": 0.0 if torch.equal(again, y_TNC) else 1.0,
        "tokens": (tokens - y_TNC[:, order_N]).abs().max().item(),
        "tasks": (tasks - y_TNC[order_T]).abs().max().item(),
    }


@pytest.mark.parametrize("options", [{"noise": 1.0}, {"groups": 4, "max_ranks_per_token": 2, "renormalise": True}])
def test_evaluation_repeats_and_the_order_of_tokens_and_tasks_does_not_matter(options):
    for changes in run_ranks(2, symmetries, {**SETTINGS, **options}):
        assert changes["repeats"] == 0, "bit for bit"
        assert max(changes.values()) < 1e-6
