"""Counts on tensors without data, against the real model, what its autograd keeps, and torch's own FLOP counter."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.model import create_model
from fgmoe_dist.planning.trace import AnyDataset, count
from fgmoe_dist.tasks import TASKS
from fgmoe_dist.tasks.class_map import ClassTask
from fgmoe_dist.tasks.labelling import KNOWN_KEYS
from tests.runs import SETTINGS

PRODUCTS = ("matmul", "attention", "conv1x1", "conv3x3", "conv1x1_backward", "conv3x3_backward")


def configuration(**sections):
    values = {**SETTINGS, **{key: {**SETTINGS.get(key, {}), **changes} for key, changes in sections.items()}}
    return build_config(values)


def real_model(config):
    return create_model(config, AnyDataset(config))


def without_routing(model, config):
    model.decoder.unroute()
    return model


@pytest.mark.parametrize("sections", [
    {}, {"decoder": {"channels": 24, "stride": 16, "adapter_rank": 2, "level_weights": True}},
    {"experts": {"shared": 0, "global_experts": 0, "hidden": 16}}, {"experts": {"shared_gate": "joint", "shared": 2}},
    {"experts": {"bank": "shared", "kind": "lora", "router": "image"}},
])  # fmt: skip
def test_parameters_are_the_model_s(sections):
    config = configuration(**sections)
    found, model = count(config), real_model(config)
    encoder = set(model.encoder.parameters())
    experts = sum(p.numel() for p in model.parameters() if is_expert_parameter(p))
    assert found.encoder_parameters == sum(p.numel() for p in encoder)
    assert found.expert_parameters == experts
    assert found.dense_parameters == sum(p.numel() for p in model.parameters() if p not in encoder) - experts
    height, width = (side // config.decoder.stride for side in config.data.image_size)
    assert found.tokens == height * width


def run_for_real(config) -> dict[str, float]:
    """FLOPs of the encoder, and of the rest forward and backward; bytes that autograd keeps between the two."""
    model = without_routing(real_model(config), config)
    image = torch.randn(config.train.micro_batch_size, 3, *config.data.image_size)
    encoder, forward, backward = (FlopCounterMode(display=False) for _ in range(3))
    with encoder, sdpa_kernel(SDPBackend.MATH):  # the counter does not know a CPU's fused attention
        levels = model.encoder(image)
    parameters, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predictions = model.decoder(levels).predictions
        labels = {task: KNOWN_KEYS[task].empty(len(image), config.data.image_size) for task in config.tasks}
        loss = sum(task.loss(predictions[task.name], labels[task.name]) for task in model.tasks)
    with backward:
        loss.backward()
    return {
        "encoder": encoder.get_total_flops(), "forward": forward.get_total_flops(),
        "backward": backward.get_total_flops(), "kept": sum(size for size, _ in kept.values()),
    }  # fmt: skip


@pytest.mark.parametrize("sections", [{}, {"train": {"micro_batch_size": 2}, "decoder": {"level_weights": True}}])
def test_work_and_memory_are_those_of_a_real_pass(sections):
    config = configuration(**sections)
    found, real = count(config), run_for_real(config)

    def flops(*parts, backward=False):
        return sum(w.amount for w in found.work if w.kind in PRODUCTS and w.part in parts and w.backward == backward)

    assert flops("encoder") == real["encoder"]
    assert flops("decoder", "block", "shared", "global", "losses") == real["forward"]
    assert flops("decoder", backward=True) == real["backward"]
    # Kernels differ a little between devices in what they keep; scalars and masks.
    assert found.saved_bytes == pytest.approx(real["kept"], rel=0.02)
    assert 0 < found.block_saved_bytes < found.saved_bytes


def test_products_of_shared_and_global_experts_by_hand():
    config = configuration()
    tokens, tasks, blocks, c = math.prod((14, 18)), 4, 2, 16
    work = {part: sum(w.amount for w in count(config).work if w.part == part and w.kind == "matmul")
            for part in ("shared", "global")}  # fmt: skip
    assert work["shared"] == blocks * tasks * tokens * 2 * 2 * c * 16
    # Two global experts of hidden size 32, their gates, and the mixture (an einsum).
    assert work["global"] == blocks * tokens * (2 * 2 * 2 * c * 32 + tasks * 2 * c * 2 + tasks * 2 * 2 * c)


def test_a_bank_that_tasks_share_has_as_many_fewer_parameters():
    of_each, shared = (count(configuration(experts={"bank": bank})) for bank in ("task", "shared"))
    assert of_each.expert_parameters == 4 * shared.expert_parameters
    assert of_each.dense_parameters == shared.dense_parameters and of_each.work == shared.work


def test_bf16_halves_what_is_kept_and_is_counted_as_bf16():
    full = count(configuration())
    half = count(configuration(train={"precision": "bf16"}, parallel={"zero_stage": 1}))
    assert half.block_saved_bytes / full.block_saved_bytes == pytest.approx(0.5, abs=0.05)
    assert half.saved_bytes < full.saved_bytes  # losses stay in fp32
    assert {w.precision for w in full.work} == {"fp32"}
    assert all(w.precision == "bf16" for w in half.work if w.part == "encoder" and w.kind in PRODUCTS)


def test_large_encoders_need_no_memory():
    config = configuration(encoder={"name": "vit_large_patch16_384"}, data={"image_size": [128, 192]})
    assert count(config).encoder_parameters == pytest.approx(304e6, rel=0.01)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_pyramids_are_counted_too(name):
    found = count(configuration(encoder={"name": name}, data={"image_size": [224, 224]}))
    assert found.encoder_parameters > 1e6 and any(w.part == "encoder" for w in found.work)


def test_tasks_of_a_data_set_are_planned_where_it_is_there(pascal_shards, tmp_path, monkeypatch):
    index = json.loads((pascal_shards.train / "index.json").read_text())
    index["tasks"] += ["material", "haze"]
    index["classes"]["material"] = ["?"] * 300
    index["definitions"] = {"material": {"kind": "classes"}, "haze": {"kind": "scalar"}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    config = build_config({**SETTINGS, "tasks": ["material", "haze"], "data": {"train": str(tmp_path)}})
    assert [task.channels for task in real_model(config).tasks] == [300, 1]
    assert count(config).dense_parameters > 0
    with pytest.raises(UserError, match="tasks.0='material': no such task"):
        build_config({**SETTINGS, "tasks": ["material"], "data": {"train": str(tmp_path / "nowhere")}})
    monkeypatch.setitem(TASKS, "material", ClassTask)
    with pytest.raises(UserError, match="how many classes material has stands with its shards; set data.train"):
        count(build_config({**SETTINGS, "tasks": ["material"]}))


def test_what_cannot_be_is_told():
    with pytest.raises(UserError, match="data.image_size"):
        count(configuration(data={"image_size": [104, 144]}))
    with pytest.raises(UserError, match="encoder.name"):
        count(configuration(encoder={"name": "vit_tinny"}))
