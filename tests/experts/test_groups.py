"""Shares and copies of the experts: by hand, and as DeepSpeed arranges them."""

from __future__ import annotations

import pytest
from torch import nn

from fgmoe_dist.experts import groups
from tests.ranks import run_ranks

WORLD = 4
# By ep_size, of each rank: its share and its copy, the ranks it exchanges tokens with, those with the same experts.
ARRANGEMENT = {
    1: [(0, rank, [rank], [0, 1, 2, 3]) for rank in range(4)],
    2: [(0, 0, [0, 1], [0, 2]), (1, 0, [0, 1], [1, 3]), (0, 1, [2, 3], [0, 2]), (1, 1, [2, 3], [1, 3])],
    4: [(rank, 0, [0, 1, 2, 3], [rank]) for rank in range(4)],
}


def arrangement(ep_sizes: list[int], placed_by_deepspeed: bool) -> list[tuple]:
    import torch.distributed as dist

    from fgmoe_dist.training.engines.deepspeed import prepare

    found = []
    for ep_size in ep_sizes:
        if placed_by_deepspeed:
            prepare(ep_size)
        members = [dist.get_process_group_ranks(group) for group in groups.find_groups(ep_size)]
        found.append((groups.ep_rank(ep_size), groups.copy_rank(ep_size), *members))
    return found


@pytest.mark.parametrize("placed_by_deepspeed", [False, True])
def test_neighbours_share_a_copy_of_the_experts(placed_by_deepspeed):
    answers = run_ranks(WORLD, arrangement, list(ARRANGEMENT), placed_by_deepspeed)
    assert answers == [[ARRANGEMENT[ep_size][rank] for ep_size in ARRANGEMENT] for rank in range(WORLD)]


def registered_groups() -> bool:
    from deepspeed.utils import groups as theirs

    from fgmoe_dist.training.engines.deepspeed import prepare

    prepare(2)
    prepare(2)
    ours = groups.find_groups(2)
    return (
        ours.exchange is theirs._get_expert_parallel_group("ep_size_2")
        and ours.copies is theirs._get_expert_data_parallel_group("ep_size_2")
        and len(theirs._get_expert_parallel_group_dict()) == 1
    )


def test_the_engine_s_groups_are_the_experts():
    assert run_ranks(2, registered_groups) == [True, True]


def test_a_process_by_itself_has_all_experts():
    assert (groups.ep_rank(1), groups.copy_rank(1)) == (0, 0)


def test_an_expert_s_parameter_is_marked():
    expert, other = nn.Linear(2, 2).parameters()
    groups.mark_expert_parameter(expert, 1)
    assert groups.is_expert_parameter(expert) and not groups.is_expert_parameter(other)
