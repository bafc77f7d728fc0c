"""Ranks without a launcher: what rank 0 found comes back, and a rank that fails or dies ends all, at once."""

from __future__ import annotations

import os
import time

import pytest

from fgmoe_dist.benches.ranks import on_ranks
from fgmoe_dist.errors import UserError


def summed(ranks, start: int) -> tuple[int, int, float]:
    import torch
    import torch.distributed as dist

    value = torch.tensor(float(start + ranks.rank))
    dist.all_reduce(value)
    return ranks.rank, ranks.world, value.item()


def failing(ranks, how: str) -> None:
    import torch.distributed as dist

    if ranks.rank == 1:
        if how == "died":
            os._exit(3)
        raise UserError("wrong setting") if how == "user" else KeyError("lost")
    dist.barrier()
    time.sleep(600)


@pytest.mark.slow
def test_rank_0_answers():
    assert on_ranks(2, summed, 5) == (0, 2, 11.0)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kind", "told"), [
    ("user", UserError, "rank 1 of 2: wrong setting"), ("ours", RuntimeError, "KeyError"),
    ("died", RuntimeError, "died"),
])  # fmt: skip
def test_a_lost_rank_ends_all(how, kind, told):
    start = time.monotonic()
    with pytest.raises(kind, match=told):
        on_ranks(2, failing, how)
    assert time.monotonic() - start < 120  # not the ten minutes that rank 0 would sleep
