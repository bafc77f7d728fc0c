"""What rank 0 finds, every rank gets; where it fails, every rank fails. What the environment says is checked."""

from __future__ import annotations

import pytest

from fgmoe_dist.errors import CannotWrite, UserError
from fgmoe_dist.ranks import RankLost, from_first, read_environment
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


GOOD = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_the_environment_of_every_launcher_is_read():
    assert read_environment({}) == (0, 1, 0, 1)
    assert read_environment(GOOD) == (1, 4, 1, 1)
    assert read_environment({**GOOD, "LOCAL_WORLD_SIZE": "2"}).local_world == 2  # torchrun's
    assert read_environment({**GOOD, "LOCAL_SIZE": "4"}).local_world == 4  # deepspeed's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"LOCAL_RANK": None}, "RANK=1 is set and LOCAL_RANK is not: torchrun, deepspeed and .* set them all"),
        ({"WORLD_SIZE": "", "MASTER_PORT": None}, "RANK=1 is set and WORLD_SIZE, MASTER_PORT is not"),
        ({"RANK": "x"}, "RANK='x' in the environment: give a whole number from 0 to 3"),
        ({"RANK": "4"}, "RANK='4' in the environment: give a whole number from 0 to 3"),
        ({"RANK": "-1"}, "RANK='-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment: give a whole number from 1"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK='1.0'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE='0'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT='99999' in the environment: give a whole number from 0 to 65535"),
        ({"RANK": None}, "WORLD_SIZE=4 is set and RANK is not"),
    ],
)
def test_an_environment_that_cannot_be_meant_is_told_in_one_line(change, message):
    values = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        read_environment(values)
    assert "\n" not in str(caught.value)


def test_a_file_that_rank_0_cannot_write_is_every_ranks_user_error():
    error = CannotWrite(28, "No space left on device", "/x")
    line = "/x: cannot be written (No space left on device); make room there, or name another place"
    assert run_ranks(2, ask, error, timeout=60) == [(CannotWrite, line), (UserError, line)]
