"""Progress on a terminal and in a log."""

import io

from fgmoe_dist.progress import _line, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_items_pass_through_and_a_log_gets_plain_lines():
    stream = io.StringIO()
    assert list(track([1, 2, 3], "counting", every_s=0, stream=stream)) == [1, 2, 3]
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and lines[0].startswith("counting: 1/3, ") and lines[0].endswith(" left")
    assert "\x1b" not in stream.getvalue() and lines[-1].startswith("counting: 3/3, ")


def test_an_unknown_total_is_not_made_up():
    stream = io.StringIO()
    assert list(track(iter("ab"), "reading", stream=stream)) == ["a", "b"]
    assert stream.getvalue().startswith("reading: 2, ")


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    assert list(track(range(3), "counting", stream=stream)) == [0, 1, 2]
    assert "3/3" in stream.getvalue()


def test_rate_and_time_left():
    assert _line("x", 30, 120, 60.0) == "x: 30/120, 0.5/s, 3:00 left"
    assert _line("x", 1, 7201, 1.0) == "x: 1/7201, 1.0/s, 2:00:00 left"
    assert _line("x", 0, 5, 0.0) == "x: 0/5, 0.0/s, ? left"
    assert _line("x", 5, 5, 65.0) == "x: 5/5, 0.1/s, took 1:05"
