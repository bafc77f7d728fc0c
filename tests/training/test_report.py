"""What a run reports of its experts, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from fgmoe_dist.training import report
from fgmoe_dist.training.trainer import StepReport

LOAD = torch.tensor([[[2.0, 2, 2, 2], [6, 2, 0, 0]]])
DROPPED = torch.tensor([[0.0, 2.0]])


def test_the_load_drawn_is_that_of_the_steps_since_the_last_evaluation(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(report, "load_map", lambda *args, **named: drawn.append((*args, named["caption"])))
    monkeypatch.setattr(report, "evaluate", lambda *_, **__: {})
    monkeypatch.setattr(report, "print_scores", lambda *_: None)
    monkeypatch.setattr(report, "run_score", lambda *_: 0.0)
    nothing = SimpleNamespace(log_evaluation=lambda *_: None, log_pictures=lambda *_: None)
    folder = SimpleNamespace(pictures=lambda step: tmp_path, write_evaluation=lambda *_: "")
    trainer = SimpleNamespace(
        step=4, ranks=SimpleNamespace(is_first=True), val_shards=SimpleNamespace(samples=1), model=None,
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
        load, figures, names, path, caption = drawn.pop()
        assert np.array_equal(load, steps * LOAD.numpy()) and figures[0][1].dropped == 2 / 8
        assert (names, path) == (["semseg", "depth"], tmp_path / "expert_load.png")
        assert caption == {2: "steps 5 to 6", 1: "steps 7 to 7"}[steps]
