"""FGMoE with every kind of expert, router and gate of experts/, and with every part around them that can be chosen:
trained, planned, exported, and on ranks as on one.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from fgmoe_dist.config import load_config
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.decoders.parts.aggregator import ConvAggregator
from fgmoe_dist.decoders.parts.mixer import ChannelOffsets
from fgmoe_dist.experts.bank import CrossTaskExperts
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.export import verify
from fgmoe_dist.export.write import convert_model
from fgmoe_dist.model import create_model
from fgmoe_dist.planning.trace import count
from fgmoe_dist.training.losses import task_losses
from tests.decoders.test_every_decoder import SHORT, AnyNYUD
from tests.decoders.tiny import configuration, labels, levels, settings_of, tiny_decoder
from tests.export.models import checkpoint_state, moved
from tests.runs import losses

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHARED = {"bank": "shared", "count": 4, "split": 2, "top_k": 2}
EXPERTS = {
    "conv_lora": {"kind": "conv_lora", "router": "image"},
    "rank_one": {"kind": "rank_one", "count": 4, "split": 2, "hidden": 2, "top_k": 8, "gate_scale": 8.0},
    "rank_one_shared": {"kind": "rank_one", "hidden": 2, **SHARED},
    "embedding": {"condition": "embedding", **SHARED},
    "film": {"condition": "film", "task_embedding": True},
    "expert_choice": {"router": "expert", "balance_losses": {"importance": 0.01}},
    "closed": {**SHARED, "closed_share": 0.5, "balance_losses": {"mutual_information": 0.01}},
    "crossing_shared": {"global_input": "tasks", **SHARED},
    "gates": {"router_init": "zero", "gate_scale": 2.0, "balance_losses": {"importance": 0.01, "load": 0.01}},
}
AROUND = {
    "offsets": {"mixer_offsets": "channel"},
    "convolutions": {"aggregator": "conv", "head_channels": 8},
}
SETTINGS = {name: {"experts": experts} for name, experts in EXPERTS.items()}
SETTINGS |= {name: {"decoder": decoder} for name, decoder in AROUND.items()}
SETTINGS["crossing"] = {"experts": {"global_input": "tasks", "task_embedding": True}, "decoder": {"blocks": 2}}
SETTINGS["pruned"] = {"experts": {**SHARED, "kept": [[[0, 1, 4, 5]], [[2, 3, 6, 7]]]}, "decoder": {"blocks": 2}}
every_setting = pytest.mark.parametrize("name", SETTINGS)


@every_setting
def test_every_weight_learns_and_is_one_task_s_or_shared(name):
    decoder = tiny_decoder("fgmoe", SETTINGS[name])
    output = decoder(levels())
    losses_T = task_losses(decoder.tasks, output, labels(decoder))[1]
    total = sum(losses_T) + sum(weight * loss for weight, loss in decoder.auxiliary(output).losses.values())
    total.backward(retain_graph=True)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())
    own = list(decoder.own_parameters())
    routed = [p for p in decoder.parameters() if is_expert_parameter(p)]
    shared = [p for p in decoder.shared_parameters() if not is_expert_parameter(p)]
    assert sorted(map(id, own + shared + routed)) == sorted(map(id, decoder.parameters())), "each once"
    gradients_T = [torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True) for loss in losses_T]
    for gradients in zip(*gradients_T):
        reached = [g != 0 for g in gradients if g is not None and g.any()]
        assert not any((a & b).any() for a, b in combinations(reached, 2))


@pytest.mark.slow
@every_setting
def test_a_plan_counts_it(name):
    config = configuration("fgmoe", {**SHORT, **SETTINGS[name]})
    found, model = count(config), create_model(config, AnyNYUD)
    counts = parameter_counts(model.decoder, model.encoder, 1)
    assert found.expert_parameters == counts["routed"]
    assert found.dense_parameters + found.expert_parameters == counts["trained"]
    assert 0 < counts["active"] <= counts["total"]


@pytest.mark.slow
@every_setting
def test_an_exported_program_predicts_as_the_model(name, tmp_path):
    experts = {"kernel": "reference", **SETTINGS[name].get("experts", {})}
    config = configuration("fgmoe", {**SHORT, **SETTINGS[name], "experts": experts})
    state = checkpoint_state(config)
    model = moved(create_model(config, state))
    convert_model(model, state, "pt2")(tmp_path / "model.pt2")
    found = verify.differences(model, "pt2", tmp_path / "model.pt2")
    assert max(difference.relative for difference in found.values()) < 1e-5


@pytest.mark.slow
@every_setting
def test_ranks_train_what_one_does_and_go_on_elsewhere(name, runs):
    own = {f"decoder__{key}": value for key, value in settings_of("fgmoe").items()}
    own |= {
        f"{section}__{key}": value
        for section, values in SETTINGS[name].items()
        for key, value in values.items()
        if not isinstance(value, dict)
    }
    alike = {**own, "train__checkpoint_every": 2, "train__steps": 4, "train__micro_batch_size": 2}
    lines = runs.train("apart", 2, **alike, parallel__ep_size=2)
    together = runs.train("together", 2, **alike, parallel__ep_size=1)
    assert losses(lines)[0] == pytest.approx(losses(together)[0], rel=1e-6)
    assert losses(lines) == pytest.approx(losses(together), rel=1e-4)
    checkpoint = str(runs.folder("apart") / "checkpoints/step-00000002")
    alone = runs.train("alone", 1, resume=checkpoint, **{**alike, "train__micro_batch_size": 4})
    assert losses(alone) == pytest.approx(losses(lines, after=2), rel=1e-4)


def the_authors() -> dict:
    """The parts of configs/decoders/fgmoe_degmix.yaml, small."""
    preset = load_config(CONFIGS / "decoders/fgmoe_degmix.yaml")
    chosen = {key: getattr(preset.decoder, key) for key in ("aggregator", "mixer_offsets")}
    assert preset.decoder.head_channels == 180 and preset.decoder.kind == "fgmoe"
    return {"decoder": {**chosen, "head_channels": 12}, "experts": {"global_input": preset.experts.global_input}}


def test_the_authors_parts_train_together_in_bf16():
    decoder = tiny_decoder("fgmoe", the_authors()).bfloat16()
    assert isinstance(decoder.aggregator, ConvAggregator)
    assert isinstance(decoder.mixers[0][0].deform.offset, ChannelOffsets)
    assert isinstance(decoder.blocks[0].global_experts, CrossTaskExperts)
    sum(task_losses(decoder.tasks, decoder(levels(torch.bfloat16)), labels(decoder))[1]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("format", "tolerance"), [("pt2", 1e-5), ("onnx", 1e-4)])
def test_the_authors_parts_are_exported(format, tolerance, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    sections = the_authors()
    sections["experts"]["kernel"] = "reference"
    config = configuration("fgmoe", {**SHORT, **sections})
    state = checkpoint_state(config)
    model = moved(create_model(config, state))
    convert_model(model, state, format)(tmp_path / f"model.{format}")
    found = verify.differences(model, format, tmp_path / f"model.{format}")
    assert max(difference.relative for difference in found.values()) < tolerance
