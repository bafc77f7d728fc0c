"""The seam between training and its engine: one process with plain autograd trains as DeepSpeed's engine does."""

from __future__ import annotations

import subprocess
import sys

import torch

from tests.ranks import run_ranks
from tests.runs import ROOT, environment, this_rank

STEPS = 3


def train(engine: str, config_file, overrides):
    from fgmoe_dist.config import load_config
    from fgmoe_dist.training.trainer import Trainer

    trainer = Trainer(load_config(config_file, overrides), this_rank(), engine=engine)
    reports = [trainer.train_step() for _ in range(STEPS)]
    state = trainer.engine.optimizer_state()
    values = [value.numpy() for p in trainer.model.decoder.parameters() for value in state.get(p).values()]
    return [[float(report.losses["total"]), report.grad_norm] for report in reports], values, state.step


def test_it_trains_as_deepspeed_does(runs):
    changes = dict(
        parallel__zero_stage=0, train__batch_size=2, train__micro_batch_size=1, experts__bias_update_rate=0.01
    )
    overrides = runs.overrides("run", changes)
    ((plain, plain_values, step),) = run_ranks(1, train, "plain", runs.config_file, overrides)
    ((engine, engine_values, engine_step),) = run_ranks(1, train, "deepspeed", runs.config_file, overrides)
    assert step == engine_step == STEPS
    torch.testing.assert_close(torch.tensor(plain), torch.tensor(engine), rtol=1e-5, atol=0)
    for ours, theirs in zip(plain_values, engine_values):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-3, atol=1e-6)


def test_a_dry_run_in_one_process_does_without_deepspeed(runs):
    """In an interpreter that has no DeepSpeed."""
    program = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from fgmoe_dist.train import main; main(sys.argv[1:])"
    )  # fmt: skip
    command = [sys.executable, "-c", program, "--config", str(runs.config_file), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "nothing was written" in done.stdout and "plain autograd" in done.stdout
