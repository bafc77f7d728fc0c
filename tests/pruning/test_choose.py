"""Which experts are left, by hand.

Legend: L blocks, T tasks, E routed experts of a task.
"""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.pruning.choose import choose, count_kept
from tests.decoders.tiny import configuration

TASK = Experts(count=4, split=1, top_k=1)
SHARED = Experts(count=4, split=1, top_k=1, bank="shared")
# One block of two tasks, and how often each of four experts was chosen.
USAGE = torch.tensor([[[5.0, 0.0, 9.0, 1.0], [100.0, 80.0, 0.0, 0.0]]], dtype=torch.float64)
BOTH = (0, 1)


@pytest.mark.parametrize(
    ("keep", "globally", "tasks", "kept"),
    [
        ("used", False, BOTH, [[0, 2, 3], [0, 1]]),
        (0.5, False, BOTH, [[0, 2], [0, 1]]),
        (0.25, False, BOTH, [[2], [0]]),
        (0.3, False, BOTH, [[0, 2], [0, 1]]),  # 1.2 of 4 is 2
        (0.25, True, BOTH, [[2], [0, 1]]),  # of all 8 the best two are the second task's; a bank keeps one
        (0.5, True, BOTH, [[0, 2], [0, 1]]),
        ("used", False, (0,), [[0, 2, 3], [0, 1, 2, 3]]),
        (0.25, False, (1,), [[0, 1, 2, 3], [0]]),
    ],
)
def test_banks_of_each_task(keep, globally, tasks, kept):
    assert choose(USAGE, TASK, keep, globally, tasks) == [kept]


def test_a_shared_bank_is_used_by_all_its_tasks_or_by_those_that_count():
    assert choose(USAGE, SHARED, 0.5, False, BOTH) == [[[0, 1]]]
    assert choose(USAGE, SHARED, 0.5, False, (0,)) == [[[0, 2]]]
    assert choose(USAGE, SHARED, "used", False, (1,)) == [[[0, 1]]]


def test_what_was_pruned_once_can_be_pruned_again():
    first = SHARED.model_copy(update={"kept": [[[1, 2, 3]]]})
    assert choose(USAGE, first, 0.5, False, BOTH) == [[[1, 2]]]
    assert count_kept(first, 2, 1) == 3
    assert (count_kept(TASK, 2, 3), count_kept(SHARED, 2, 3)) == (24, 12)


def test_a_bank_keeps_as_many_as_a_token_goes_to():
    wide = TASK.model_copy(update={"top_k": 3})
    assert choose(USAGE, wide, 0.25, False, BOTH) == [[[0, 2, 3], [0, 1, 2]]]


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"kept": [[[0, 1, 2]]]}, "names other banks than the 4 of each of decoder.blocks=1"),
        ({"kept": [[[0, 1, 2]]] * 2, "bank": "shared"}, "experts.kept of 2 blocks: names other banks than the 1"),
        ({"kept": [[[0, 2, 1]]], "bank": "shared"}, "are no rising numbers below the 8 routed"),
        ({"kept": [[[0, 1, 8]]], "bank": "shared"}, "are no rising numbers below the 8 routed"),
        ({"kept": [[[0, 1]]], "bank": "shared"}, "keeps 2 of a bank, fewer than experts.top_k=3"),
        ({"kept": [[[0, 1, 2]]], "bank": "shared", "backend": "deepspeed"}, "set experts.backend=fused"),
    ],
)
def test_what_does_not_fit_a_model_is_told(experts, message):
    with pytest.raises(UserError, match=message):
        configuration("fgmoe", {"experts": experts})


def test_ranks_have_to_hold_as_many_each():
    kept = {"kept": [[[0, 1, 2, 4]]], "bank": "shared"}
    with pytest.raises(UserError, match="ep_size=2 ranks would hold 3, 1 experts of block 0"):
        configuration("fgmoe", {"experts": kept, "parallel": {"ep_size": 2}})
    configuration("fgmoe", {"experts": {**kept, "kept": [[[0, 1, 4, 5]]]}, "parallel": {"ep_size": 2}})
