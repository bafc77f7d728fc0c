"""What a run reports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from fgmoe_dist.training import report
from fgmoe_dist.training.trainer import StepReport

LOAD = torch.tensor([[[2.0, 2, 2, 2], [6, 2, 0, 0]]])


def test_what_is_drawn_is_counted_in_the_steps_since_the_last_evaluation(monkeypatch, tmp_path):
    drawn = []

    def pictures(counts, caption):
        drawn.append((counts["load"], caption))
        return {"load": np.zeros((2, 2, 3), np.uint8)}

    monkeypatch.setattr(report, "evaluate", lambda *_, **__: {})
    monkeypatch.setattr(report, "print_scores", lambda *_: None)
    monkeypatch.setattr(report, "run_score", lambda *_: 0.0)
    nothing = SimpleNamespace(log_evaluation=lambda *_: None, log_pictures=lambda *_: None)
    folder = SimpleNamespace(pictures=lambda step: tmp_path, write_evaluation=lambda *_: "")
    trainer = SimpleNamespace(
        step=4, ranks=SimpleNamespace(is_first=True), val_shards=SimpleNamespace(samples=1), tasks=[],
        model=SimpleNamespace(decoder=SimpleNamespace(pictures=pictures)), eval_transform=None,
        config=SimpleNamespace(
            data=SimpleNamespace(workers=0, max_bad_samples=0), train=SimpleNamespace(pictures=0)
        ),
    )  # fmt: skip
    reporter = report.Reporter(trainer, folder, nothing)
    reporter.evaluate(with_constants=False)
    assert not drawn, "no step, nothing counted"
    for steps in (2, 1):
        for _ in range(steps):
            trainer.step += 1
            reporter.observe(StepReport({}, {"load": LOAD}, 0.0, 0.0, 0.0, 0.0))
        reporter.evaluate(with_constants=False)
        load, caption = drawn.pop()
        assert torch.equal(load, steps * LOAD.double()) and (tmp_path / "load.png").is_file()
        assert caption == {2: "steps 5 to 6", 1: "steps 7 to 7"}[steps]
