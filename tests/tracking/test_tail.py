"""A sink that is slow, away or broken holds up nothing and loses nothing."""

from __future__ import annotations

import threading
import time

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking import tail
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.tail import Tail


class Sink:
    name = "sink"

    def __init__(self, *outcomes):
        self.outcomes, self.calls, self.done = list(outcomes), 0, threading.Event()

    def catch_up(self):
        self.calls += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            outcome()
        self.done.set()
        return 0

    def where_to_look(self):
        return ""


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setattr(tail, "RETRY_SECONDS", 0.01)


def following(tmp_path, *outcomes) -> Tail:
    return Tail(Sink(*outcomes), RunFolder(tmp_path))


def test_a_sink_that_fails_is_tried_again_and_warned_about_once(tmp_path, caplog):
    found = following(tmp_path, *[ConnectionError("server away")] * 3)
    found.start()
    assert found.sink.done.wait(20)
    found.end(20)
    assert caplog.text.count("server away") == 1 and "training goes on" in caplog.text and "behind" not in caplog.text


def test_the_end_waits_so_long_and_no_longer(tmp_path, caplog):
    release = threading.Event()
    found = following(tmp_path, None, release.wait)
    found.start()
    found.wake()
    begun = time.monotonic()
    found.end(0.05)
    assert time.monotonic() - begun < 10 and "sink is behind" in caplog.text and "`fgmoe sync`" in caplog.text
    release.set()


def test_a_start_waits_so_long_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "START_SECONDS", 0.01)
    release = threading.Event()
    found = following(tmp_path, release.wait)
    found.start()  # returns
    release.set()
    found.end(20)
    assert found.sink.calls == 2


def test_what_can_never_work_is_said_at_once_and_later_only_warned_about(tmp_path, caplog):
    with pytest.raises(UserError, match="never"):
        following(tmp_path, UserError("never")).start()
    found = following(tmp_path, None, UserError("deleted meanwhile"))
    found.start()
    found.wake()
    found.end(20)
    assert caplog.text.count("deleted meanwhile") == 1


def test_the_end_tries_twice(tmp_path, caplog):
    found = following(tmp_path, None)
    found.start()
    found.sink.outcomes = [ConnectionError("a hiccup")]
    found.end(20)
    assert found.sink.calls == 3 and "behind" not in caplog.text
