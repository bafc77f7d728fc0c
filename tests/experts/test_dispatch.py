"""Dispatch and combine alone: they lose nothing, and know every size after one wait for the device."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import run_ranks

WORLD, C = 3, 5
# What makes the host wait for a GPU: sizes that depend on values, and values themselves.
SYNCS = ("nonzero.", "_local_scalar_dense", "masked_select", "bincount", "unique", "repeat_interleave.Tensor")


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        by_mask = name.startswith("index") and any(
            torch.is_tensor(index) and index.dtype == torch.bool
            for indices in args[1:2] if isinstance(indices, (list, tuple)) for index in indices
        )  # fmt: skip
        if by_mask or name.startswith(SYNCS):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def trip(x_NC, weight_NK, owner_NK) -> tuple[torch.Tensor, int]:
    """The tokens after experts that only weigh them, and the number of rows sent."""
    import torch.distributed as dist

    from fgmoe_dist.experts.dispatch import combine, plan_route, start_exchange, wait_exchange

    route, rows = plan_route(x_NC, weight_NK, owner_NK, owner_NK, dist.group.WORLD)
    x_MC, weight_MK, _ = wait_exchange(start_exchange(route, *rows))
    sums_MC = x_MC * weight_MK.sum(1, keepdim=True)
    return combine(route, *wait_exchange(start_exchange(route, sums_MC, back=True))), route.own_rows + sum(
        route.send_rows
    )


def there_and_back(problems: list[tuple[list[int], int, int]]) -> list[tuple[float, float, int, list[str]]]:
    """Experts that do nothing, gates that add up to 1: how much tokens and gradients change, rows too many; waits."""
    import torch.distributed as dist

    answers = []
    for tokens, top_k, seed in problems:
        count = tokens[dist.get_rank()]
        generator = torch.Generator().manual_seed(seed + dist.get_rank())
        x_NC = torch.randn(count, C, generator=generator, requires_grad=True)
        owner_NK = torch.randint(-1, WORLD, (count, top_k), generator=generator)
        kept_NK = owner_NK >= 0
        weight_NK = torch.rand(count, top_k, generator=generator) + 0.1
        weight_NK = weight_NK * kept_NK / (weight_NK * kept_NK).sum(1, keepdim=True).clamp(min=0.1)
        going_NC = torch.randn(count, C, generator=generator)
        with Watch() as watch:
            y_NC, rows = trip(x_NC, weight_NK, owner_NK)
            y_NC.backward(going_NC)
        sent_N1 = kept_NK.any(1, keepdim=True)
        changes = (y_NC - x_NC * sent_N1, x_NC.grad - going_NC * sent_N1)
        needed = sum(len(set(owners) - {-1}) for owners in owner_NK.tolist())
        answers.append((*(change.abs().sum().item() for change in changes), rows - needed, watch.seen))
    return answers


PROBLEM = st.tuples(st.lists(st.integers(0, 7), min_size=WORLD, max_size=WORLD), st.integers(1, 4), st.integers(0, 999))


@settings(deadline=None, max_examples=2, database=None)
@given(st.lists(PROBLEM, min_size=15, max_size=15))
def test_there_and_back_is_the_identity_and_waits_for_nothing_but_counts(problems):
    for answers in run_ranks(WORLD, there_and_back, problems):
        for problem, (change, gradient, spare_rows, waits) in zip(problems, answers):
            assert max(change, gradient) < 1e-4, problem
            assert spare_rows == 0, "a token goes to a rank once, and a dropped slot nowhere"
            assert not waits, problem


def waits_on_a_gpu() -> int:
    torch.cuda.init()
    x_NC = torch.randn(64, C, device="cuda", requires_grad=True)
    weight_NK, owner_NK = torch.rand(64, 2, device="cuda"), torch.zeros(64, 2, dtype=torch.long, device="cuda")
    for _ in range(2):  # the first trip sets up the communicator
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trip(x_NC, weight_NK, owner_NK)[0].sum().backward()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.gpu
def test_the_host_waits_for_a_gpu_once():
    assert run_ranks(1, waits_on_a_gpu) == [1]


def walked_twice(seed: int) -> list[list[list[float]]]:
    """The gradient of two losses of one graph, one after the other, and of their sum."""
    import torch.distributed as dist

    generator = torch.Generator().manual_seed(seed + dist.get_rank())
    x_NC = torch.randn(6, C, generator=generator, requires_grad=True)
    owner_NK = torch.randint(-1, WORLD, (6, 2), generator=generator)
    y_NC, _ = trip(x_NC, torch.rand(6, 2, generator=generator), owner_NK)
    losses = y_NC[:3].square().sum(), y_NC[3:].sin().sum()
    each = [torch.autograd.grad(loss, x_NC, retain_graph=True)[0] for loss in losses]
    return [gradient_NC.tolist() for gradient_NC in (sum(each), *torch.autograd.grad(sum(losses), x_NC))]


def test_a_graph_can_be_walked_loss_by_loss():
    for one_by_one, together in run_ranks(WORLD, walked_twice, 0):
        torch.testing.assert_close(torch.tensor(one_by_one), torch.tensor(together))
        assert torch.tensor(together).any()
