"""What a run reports of its experts, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fgmoe_dist.training import report
from fgmoe_dist.training.trainer import StepReport

LOAD = torch.tensor([[[2.0, 2, 2, 2], [6, 2, 0, 0]]])
DROPPED = torch.tensor([[0.0, 2.0]])


def test_load_figures():
    metrics = report.load_metrics(LOAD, DROPPED, ["semseg", "depth"])
    assert metrics["experts/entropy/block0/semseg"] == pytest.approx(1)
    assert metrics["experts/entropy/block0/depth"] == pytest.approx(0.8112781 / 2)  # bits of (3/4, 1/4), of 2
    assert metrics["experts/busiest/block0/depth"] == pytest.approx(3), "6 of 8 slots, and 2 were its share"
    assert (metrics["experts/dead/block0/semseg"], metrics["experts/dead/block0/depth"]) == (0, 2)
    assert (metrics["experts/dropped/block0/semseg"], metrics["experts/dropped/block0/depth"]) == (0, 0.25)


def test_the_imbalance_between_ranks_is_that_of_all_their_experts():
    assert report.rank_imbalance(LOAD, 1) == 1
    assert report.rank_imbalance(LOAD, 2) == pytest.approx(12 / 8), "tasks: 4 and 4, 8 and 0 slots"
    assert report.rank_imbalance(LOAD, 4) == pytest.approx(8 / 4)
    assert report.rank_imbalance(torch.cat([LOAD, LOAD.flip(2)]), 2) == 1, "another block makes up for it"


def test_the_load_drawn_is_that_of_the_steps_since_the_last_evaluation(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(report, "load_map", lambda *args, **named: drawn.append((*args, named["caption"])))
    monkeypatch.setattr(report, "evaluate", lambda *_, **__: {})
    monkeypatch.setattr(report, "print_scores", lambda *_: None)
    monkeypatch.setattr(report, "run_score", lambda *_: 0.0)
    nothing = SimpleNamespace(log_evaluation=lambda *_: None, log_pictures=lambda *_: None)
    folder = SimpleNamespace(pictures=lambda step: tmp_path, write_evaluation=lambda *_: "")
    trainer = SimpleNamespace(
        step=4, ranks=SimpleNamespace(is_first=True, rank=0, world=1), model=None,
        val_shards=SimpleNamespace(samples=1),
        tasks=[SimpleNamespace(name="semseg"), SimpleNamespace(name="depth")], eval_transform=None,
        config=SimpleNamespace(
            data=SimpleNamespace(workers=0, max_bad_samples=0), train=SimpleNamespace(pictures=0), expert_groups=1
        ),
    )  # fmt: skip
    reporter = report.Reporter(trainer, folder, nothing)
    reporter.evaluate(with_constants=False)
    assert not drawn, "no step, no load"
    for steps in (2, 1):
        for _ in range(steps):
            trainer.step += 1
            reporter.observe(StepReport({}, LOAD, DROPPED, 0.0, 0.0, 0.0, 0.0))
        reporter.evaluate(with_constants=False)
        load, dropped, names, path, caption = drawn.pop()
        assert np.array_equal(load, steps * LOAD.numpy()) and np.array_equal(dropped, steps * DROPPED.numpy())
        assert (names, path) == (["semseg", "depth"], tmp_path / "expert_load.png")
        assert caption == {2: "steps 5 to 6", 1: "steps 7 to 7"}[steps]
