"""What rank 0 finds, every rank gets; where it fails, every rank fails."""

from __future__ import annotations

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import RankLost, from_first
from tests.ranks import run_ranks


def ask(error: Exception | None):
    import torch.distributed as dist

    def look():
        assert dist.get_rank() == 0
        if error is not None:
            raise error
        return {"answer": 42}

    try:
        return from_first(look)
    except Exception as raised:
        return type(raised), str(raised)


LOST = (RankLost, "rank 0 has failed; its own message says why")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, [{"answer": 42}, {"answer": 42}]),
        (UserError("no such file"), [(UserError, "no such file")] * 2),
        (KeyError("surprise"), [(KeyError, "'surprise'"), LOST]),
    ],
    ids=["found", "user", "unforeseen"],
)
def test_from_first(error, expected):
    assert run_ranks(2, ask, error, timeout=60) == expected
