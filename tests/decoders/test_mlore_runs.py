"""MLoRE through the real trainer: on ranks, in bf16, from cached features, resumed on other ranks, exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgmoe_dist.checkpoints.checkpoint import load_model
from fgmoe_dist.checkpoints.folder import find_checkpoint, read_state
from fgmoe_dist.export import verify
from fgmoe_dist.export.write import convert_model
from tests.runs import Runs, losses

pytestmark = pytest.mark.slow

# Without noise, which belongs to the place of an image in the step's micro-batches.
MLORE = dict(
    tasks="[semseg, depth]", decoder__kind="mlore", decoder__channels=8, decoder__ranks=[2, 3, 5], decoder__own_rank=2,
    decoder__top_k=2, decoder__noise=0, decoder__balance_weight=0.1, train__checkpoint_every=2,
)  # fmt: skip


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(folder) / "decoder.safetensors")


def test_two_ranks_train_as_one_and_a_checkpoint_moves_between_them(runs: Runs):
    """Of the same micro-batches over ranks; what one rank wrote the other's loads and writes again, bit for bit."""
    two = runs.train("two", 2, train__steps=4, train__micro_batch_size=2, **MLORE)
    one = runs.train("one", 1, train__steps=4, train__micro_batch_size=4, parallel__zero_stage=0, **MLORE)
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
    assert "mlore/balance_loss" in two[-1] and "mlore/gate_entropy/module0/depth" in two[-1]

    state = read_state(find_checkpoint(runs.folder("two")))
    assert sum(name.endswith("running_var") for name in state.buffers) == 8 * 2 + 2
    moved = dict(MLORE, train__steps=4, train__micro_batch_size=4, parallel__zero_stage=2)
    runs.train("moved", 1, resume=str(runs.folder("two")), **moved)
    before, after = tensors(runs.folder("two")), tensors(runs.folder("moved"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_goes_on_as_if_unbroken(runs: Runs):
    """With noise, on the same ranks: bit for bit."""
    noisy = dict(MLORE, decoder__noise=1)
    unbroken = runs.train("unbroken", 2, train__steps=4, train__poly_power=0, **noisy)
    runs.train("broken", 2, train__steps=2, train__poly_power=0, **noisy)
    broken = runs.train("broken", 2, train__steps=4, train__poly_power=0, **noisy)
    assert losses(broken) == losses(unbroken)


def test_gradient_methods_meet_its_collectives_in_order(runs: Runs):
    """Batch norm over ranks is an exchange in each task's own backward pass."""
    settings = {"train__steps": 3, "train__weighting__kind": "pcgrad", **MLORE}
    two = runs.train("two", 2, train__micro_batch_size=2, **settings)
    one = runs.train("one", 1, train__micro_batch_size=4, **settings)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_in_bf16_and_as_one_file(runs: Runs, tmp_path):
    """The running statistics stay fp32; every format predicts as the merged model does."""
    lines = runs.train("run", 2, train__steps=2, train__precision="bf16", **MLORE)
    assert all(loss == loss for loss in losses(lines))
    means = [value for name, value in tensors(runs.folder("run")).items() if name.endswith("running_mean.weight")]
    assert any(not torch.equal(mean, mean.bfloat16().float()) for mean in means)
    model, _, state = load_model(runs.folder("run"), kernel="reference")
    assert model.decoder.head.weight.dtype == torch.bfloat16
    assert model.decoder.head_norm.running_var.dtype == torch.float32
    for format in ("safetensors", "pt2"):
        convert_model(model.float(), state, format)(tmp_path / format)
        found = verify.differences(model, format, tmp_path / format)
        assert max(difference.relative for difference in found.values()) < 1e-5


def test_onnx(runs: Runs, tmp_path):
    pytest.importorskip("onnxscript")
    runs.train("run", 1, train__steps=1, **MLORE)
    model, _, state = load_model(runs.folder("run"), kernel="reference")
    convert_model(model, state, "onnx")(tmp_path / "model.onnx")
    found = verify.differences(model, "onnx", tmp_path / "model.onnx")
    assert max(difference.relative for difference in found.values()) < 1e-4
