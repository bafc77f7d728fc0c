"""Contenders take turns, and what disturbs a few of the times does not count; nothing here looks at a clock."""

from __future__ import annotations

import torch

from fgmoe_dist.benches.timing import in_turn, medians, middle_mean, seconds_of


def test_contenders_take_turns_and_warm_rounds_do_not_count():
    calls = []

    def contender(name: str):
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    seconds = in_turn({"a": contender("a"), "b": contender("b")}, rounds=3, warm=1)
    assert calls == ["a", "b"] * 4
    assert seconds == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert medians(seconds) == {"a": 5, "b": 6}


def test_the_middle_of_the_times_is_what_counts():
    assert middle_mean([5.0]) == 5
    assert middle_mean([1.0, 2.0, 3.0, 100.0]) == 2.5
    assert middle_mean([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 50.0, 60.0]) == 1


def test_a_budget_is_spent_on_three_calls_at_least(monkeypatch):
    seconds, calls = iter(float(second) for second in range(100)), []
    monkeypatch.setattr("fgmoe_dist.benches.timing.time.perf_counter", lambda: next(seconds))  # a second per look
    assert seconds_of(lambda: calls.append(1), torch.device("cpu"), budget_s=0.5) == 1
    assert len(calls) == 1 + 3
    calls.clear()
    seconds_of(lambda: calls.append(1), torch.device("cpu"), budget_s=0.05)
    assert len(calls) == 1 + 1, "one call took ten times the budget"
