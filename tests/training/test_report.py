"""What a run reports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from fgmoe_dist.tracking.recorder import Recorder
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.training import report
from fgmoe_dist.training.trainer import StepReport

LOAD = torch.tensor([[[2.0, 2, 2, 2], [6, 2, 0, 0]]])


def test_what_is_drawn_is_counted_in_the_steps_since_the_last_evaluation(monkeypatch, tmp_path):
    drawn = []

    def pictures(counts, caption):
        drawn.append((counts["load"], caption))
        return {"load": np.zeros((2, 3, 3), np.uint8)}

    monkeypatch.setattr(report, "print_scores", lambda *_: None)
    folder = RunFolder(tmp_path)
    trainer = SimpleNamespace(
        step=4, ranks=SimpleNamespace(is_first=True), val_shards=SimpleNamespace(samples=1), tasks=[],
        model=SimpleNamespace(decoder=SimpleNamespace(pictures=pictures)),
    )  # fmt: skip
    reporter = report.Reporter(trainer, folder, Recorder(folder))
    reporter.evaluated({}, {})
    assert not drawn and list(folder.evaluations()) == [4], "no step, nothing counted"
    for steps in (2, 1):
        for _ in range(steps):
            trainer.step += 1
            reporter.observe(StepReport({}, {"load": LOAD}, {}, 0.0, 0.0, 0.0, 0.0))
        reporter.evaluated({}, {})
        load, caption = drawn.pop()
        assert torch.equal(load, steps * LOAD.double())
        assert caption == {2: "steps 5 to 6", 1: "steps 7 to 7"}[steps]
        assert [path.name for path in folder.picture_files(trainer.step)] == ["load.png"]
    assert list(folder.evaluations()) == [4, 6, 7]
