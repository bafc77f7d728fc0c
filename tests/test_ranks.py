"""What rank 0 finds, every rank gets; where it fails, every rank fails."""

from __future__ import annotations

import os

import pytest

from fgmoe_dist.errors import CannotWrite, UserError
from fgmoe_dist.ranks import RankLost, _place_among_ranks, from_first
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


WHOLE = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def place(monkeypatch, **variables: str) -> int:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return _place_among_ranks()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("value", [None, ""])
def test_half_of_what_a_launcher_sets_is_refused(monkeypatch, name, value):
    given = {key: text for key, text in WHOLE.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(UserError, match=rf"WORLD_SIZE=2 is set and {name} not; start the ranks with torchrun"):
        place(monkeypatch, **given)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "²", " 1"])
def test_what_is_no_number_is_refused(monkeypatch, name, value):
    with pytest.raises(UserError, match=rf"{name}=.* in the environment is no number"):
        place(monkeypatch, **{**WHOLE, name: value})


def test_a_place_among_the_ranks(monkeypatch):
    assert place(monkeypatch, **{**WHOLE, "LOCAL_RANK": "1"}) == 1
    with pytest.raises(UserError, match="RANK=2 is none of the 2 ranks"):
        place(monkeypatch, **{**WHOLE, "RANK": "2"})
    with pytest.raises(UserError, match="RANK=1 is none of the 1 ranks"):
        place(monkeypatch, RANK="1")
    for given in ({}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"}):
        assert place(monkeypatch, **given) == 0
        assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["0", "0", "1"]
        assert os.environ["MASTER_PORT"].isdigit() and os.environ["MASTER_ADDR"]


def test_a_file_that_rank_0_cannot_write_is_every_ranks_user_error():
    error = CannotWrite(28, "No space left on device", "/x")
    line = "/x: cannot be written (No space left on device); make room there, or name another place"
    assert run_ranks(2, ask, error, timeout=60) == [(CannotWrite, line), (UserError, line)]
