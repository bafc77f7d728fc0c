"""An exported model loads where DeepSpeed is not installed; what is no exported model is refused in a line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from fgmoe_dist.errors import UserError
from fgmoe_dist.export.load import load_exported
from fgmoe_dist.export.write import convert_model
from tests.export.models import tiny_model
from tests.ranks import run_ranks
from tests.runs import ROOT, environment

WITHOUT_DEEPSPEED = """
import sys, torch
sys.modules["deepspeed"] = None  # its import now fails
from fgmoe_dist.export.load import load_exported
# In a process that has joined others for a purpose of its own.
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model, config, state = load_exported(sys.argv[1])
print(state.step, config.parallel.ep_size, model.predict(torch.zeros(1, 3, 112, 144))["depth"][0].shape)
"""


def test_it_loads_where_deepspeed_is_not_installed(tmp_path):
    model, state = tiny_model()
    convert_model(model, state, "safetensors")(tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DEEPSPEED, str(tmp_path / "model.safetensors")],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "3 1 (112, 144)", done.stderr
    loaded, _, found = load_exported(tmp_path / "model.safetensors")  # and where it is
    assert found == state and not loaded.training
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def load_among_ranks(path) -> int:
    """Rank 1 alone loads; that rank 0 waits elsewhere must not matter, nor groups be made for it."""
    import torch.distributed as dist

    from fgmoe_dist.experts import groups

    if dist.get_rank() == 1:
        model, *_ = load_exported(path)
        model(torch.zeros(1, 3, 112, 144))
    dist.barrier()
    return len(groups._groups)


def test_to_load_is_no_collective(tmp_path):
    model, state = tiny_model()
    convert_model(model, state, "safetensors")(tmp_path / "model.safetensors")
    assert run_ranks(2, load_among_ranks, tmp_path / "model.safetensors", timeout=60) == [0, 0]


@pytest.mark.parametrize("metadata", [None, {"fgmoe": "{"}, {"fgmoe": "{}"}, {"fgmoe": '{"checkpoint": {"step": 1}}'}])
def test_another_file_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(UserError, match=r"other.safetensors: (is no model|cannot be read)"):
        load_exported(tmp_path / "other.safetensors")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"12345678{}")
    for name in ("cut", "none"):
        with pytest.raises(UserError, match="cannot be read"):
            load_exported(tmp_path / f"{name}.safetensors")
