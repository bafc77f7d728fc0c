"""Exported files predict as the model does, where DeepSpeed cannot be imported, and compute k experts a token."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.export import FORMATS, verify
from fgmoe_dist.export.write import CONVERTERS, check_can_export, convert_model
from tests.export.models import TASKS, tiny_model

EXPERTS = len(TASKS) * 3


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def greatest(model, format, path) -> float:
    found = verify.differences(model, format, path)
    assert list(found) == TASKS and all(difference.magnitude > 0.1 for difference in found.values())
    return max(difference.relative for difference in found.values())


def test_safetensors_holds_every_weight_under_its_plain_name(tiny, tmp_path):
    model, state = tiny
    convert_model(model, state, "safetensors")(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["fgmoe"])
        assert set(file.keys()) == {name.removeprefix("decoder.") for name in model.state_dict()}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    assert about["outputs"] == {"semseg": 3, "depth": 1} and about["input"]["shape"] == ["B", 3, 112, 144]
    assert about["checkpoint"]["config"]["experts"]["count"] == 3


def test_pt2_predicts_as_the_model(tiny, tmp_path):
    model, state = tiny
    convert_model(model, state, "pt2")(tmp_path / "model.pt2")
    assert greatest(model, "pt2", tmp_path / "model.pt2") < 1e-6
    extra = {"fgmoe.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["fgmoe.json"])["checkpoint"]["step"] == 3
    # One look-up of rows an expert: routed, not a dense sum over all of them.
    targets = Counter(str(node.target) for node in program.graph.nodes)
    assert targets["aten.nonzero_numpy.default"] == targets["aten.index_add.default"] == EXPERTS


OPTIONS = dict(shared_gate="joint", bias_update_rate=0.01, groups=3, max_ranks_per_token=2)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [{}, OPTIONS], ids=["plain", "options"])
def test_onnx_predicts_as_the_model(tmp_path, experts):
    onnx = pytest.importorskip("onnx")
    model, state = tiny_model(**experts)
    convert_model(model, state, "onnx")(tmp_path / "model.onnx")
    assert greatest(model, "onnx", tmp_path / "model.onnx") < 1e-4
    loaded = onnx.load(tmp_path / "model.onnx")
    operators = Counter(node.op_type for node in loaded.graph.node)
    assert operators["NonZero"] == EXPERTS and operators["GridSample"] == len(TASKS)
    assert json.loads({entry.key: entry.value for entry in loaded.metadata_props}["fgmoe"])["checkpoint"]["step"] == 3


SHARED = dict(bank="shared", kind="lora", router="image", shared_gate="joint")


@pytest.mark.slow
@pytest.mark.parametrize("experts", [{**OPTIONS, "capacity_factor": 1.2}, SHARED], ids=["options", "shared"])
def test_pt2_with_every_option(tmp_path, experts):
    model, state = tiny_model(**experts)
    convert_model(model, state, "pt2")(tmp_path / "model.pt2")
    assert greatest(model, "pt2", tmp_path / "model.pt2") < 1e-6


def test_a_wrong_weight_is_found(tiny, tmp_path, monkeypatch):
    model, _ = tiny
    other, _ = tiny_model()
    with torch.no_grad():
        other.decoder.heads[1].predict.bias += 1

    def run_other(format, path, batches):
        predictions = [other(torch.from_numpy(batch)).predictions for batch in batches]
        return {f"{n}/{task}": p.detach().numpy() for n, found in enumerate(predictions) for task, p in found.items()}

    monkeypatch.setattr(verify, "_run_apart", run_other)
    found = verify.differences(model, "pt2", tmp_path)
    assert found["semseg"].greatest < 1e-5 and found["depth"].greatest == pytest.approx(1, abs=1e-4)
    assert found["depth"].relative == found["depth"].greatest / found["depth"].magnitude


@pytest.mark.parametrize("order", [(0.0, math.nan), (math.nan, 0.0)], ids=["last", "first"])
def test_a_nan_anywhere_is_no_agreement(tiny, tmp_path, monkeypatch, order):
    model, _ = tiny

    def run_wrong(format, path, batches):
        predictions = [model(torch.from_numpy(batch)).predictions for batch in batches]
        return {
            f"{n}/{task}": p.detach().numpy() + np.float32(off)
            for n, (found, off) in enumerate(zip(predictions, order))
            for task, p in found.items()
        }

    monkeypatch.setattr(verify, "_run_apart", run_wrong)
    found = verify.differences(model, "pt2", tmp_path)
    assert all(difference.relative == math.inf for difference in found.values())


def test_a_full_temporary_folder_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="TMPDIR .*: cannot be written .*No space left"):
        verify.differences(tiny[0], "pt2", tmp_path)


def test_what_cannot_be_exported_is_said_before_the_work(tiny, monkeypatch):
    model, config = tiny[0], build_config(tiny[1].config)
    assert tuple(CONVERTERS) == FORMATS
    monkeypatch.setattr("fgmoe_dist.export.write.ONNX_LIMIT_BYTES", 1000)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(UserError, match=r"needs the package onnxscript; pip install 'fgmoe_dist\[export\]'"):
            check_can_export(model, config, "onnx")
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match="ends at 2 GiB"):
        check_can_export(model, config, "onnx")
    with pytest.raises(UserError, match="capacity_factor"):
        check_can_export(model, build_config({"experts": {"capacity_factor": 1.0}}), "onnx")
    monkeypatch.undo()
    routes_nothing = {"decoder": {"kind": "multi_task"}, "experts": {"capacity_factor": 1.0}}
    check_can_export(model, build_config(routes_nothing), "onnx")
