"""What every decoder owes: each of `DECODERS` is asked, a new one without being named here (but see tiny.py)."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import yaml

from fgmoe_dist.config import build_config, to_yaml
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import Decoder, Output, parameter_counts
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.export import verify
from fgmoe_dist.export.load import load_exported
from fgmoe_dist.export.write import convert_model
from fgmoe_dist.model import create_model
from fgmoe_dist.planning.trace import count
from fgmoe_dist.settings import Section
from fgmoe_dist.training.losses import task_losses
from tests.decoders.tiny import IMAGES, SIZE, configuration, labels, levels, settings_of, tiny_decoder
from tests.export.models import checkpoint_state, moved
from tests.runs import losses


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small gain nothing by more, and lose much where others compute beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


every_decoder = pytest.mark.parametrize("kind", DECODERS)
# The blocks behind the taps are cut off.
SHORT = {"encoder": {"taps": [0, 1]}, "tasks": ["semseg", "depth"]}


def whole_losses(decoder: Decoder, output: Output) -> list[torch.Tensor]:
    return task_losses(decoder.tasks, output, labels(decoder))[1]


@every_decoder
def test_predictions_have_the_promised_shape_and_every_weight_learns(kind):
    decoder = tiny_decoder(kind)
    output = decoder(levels())
    shapes = {name: tuple(prediction.shape) for name, prediction in output.predictions.items()}
    assert shapes == {task.name: (IMAGES, task.channels, *SIZE) for task in decoder.tasks}
    total = sum(whole_losses(decoder, output))
    for weight, loss in decoder.auxiliary(output).losses.values():
        total = total + weight * loss
    total.backward()
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@every_decoder
def test_it_computes_in_bf16_and_answers_in_fp32(kind):
    exact, decoder = tiny_decoder(kind), tiny_decoder(kind).bfloat16()
    with torch.no_grad():
        rounded, output = decoder(levels(torch.bfloat16)), exact(levels())
    for name, prediction in rounded.predictions.items():
        assert prediction.dtype == torch.float32 and prediction.isfinite().all(), name
    assert rounded.predictions.keys() == output.predictions.keys()
    assert all(p.dtype == torch.float32 for step in rounded.intermediate for p in step.predictions.values())


@every_decoder
def test_the_seed_alone_decides_the_weights(kind):
    first, again, other = (tiny_decoder(kind, {"run": {"seed": seed}}).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
@every_decoder
def test_a_plan_counts_its_parameters_and_its_work(kind):
    config = configuration(kind, SHORT)
    found, model = count(config), create_model(config, AnyNYUD)
    counts = parameter_counts(model.decoder, model.encoder, 1)
    assert found.expert_parameters == counts["routed"]
    assert found.dense_parameters + found.expert_parameters == counts["trained"] <= counts["total"]
    assert 0 < counts["active"] <= counts["total"]
    assert {work.backward for work in found.work if work.part == "decoder"} == {False, True}


class AnyNYUD:
    tasks, classes, boundary_max_dist = ["semseg", "depth"], {"semseg": ["?"] * 40}, 0.01


@every_decoder
def test_own_parameters_are_those_that_one_task_alone_trains(kind):
    """Number by number: of a stacked parameter each task may have its share."""
    decoder = tiny_decoder(kind)
    own, shared = list(decoder.own_parameters()), decoder.shared_parameters()
    everything = [p for p in decoder.parameters() if p.requires_grad and not is_expert_parameter(p)]
    assert sorted(map(id, own + shared)) == sorted(map(id, everything)), "each in one of the two, once"
    losses_T, names = whole_losses(decoder, decoder(levels())), {id(p): name for name, p in decoder.named_parameters()}
    gradients_T = [torch.autograd.grad(x, own + shared, retain_graph=True, allow_unused=True) for x in losses_T]
    for index, (parameter, gradients) in enumerate(zip(own + shared, zip(*gradients_T))):
        reached = [g != 0 for g in gradients if g is not None and g.any()]
        if index < len(own):
            assert not any((a & b).any() for a, b in combinations(reached, 2)), names[id(parameter)]
        else:  # what no task reaches at first is none's
            assert len(reached) != 1, names[id(parameter)]


@every_decoder
def test_what_is_printed_reads_back(kind):
    config = configuration(kind)
    printed = to_yaml(config)
    again = build_config(yaml.safe_load(printed))
    assert to_yaml(again) == printed and again.decoder == config.decoder
    assert config.decoder.model_dump() == {**type(config.decoder)().model_dump(), **settings_of(kind)}


@every_decoder
def test_every_setting_says_what_it_means(kind):
    settings = DECODERS[kind].Settings
    assert settings().kind == kind and issubclass(settings, Section)
    assert all(field.description for field in settings.model_fields.values())


def tiny_export(kind):
    """A model that looks trained, and what its checkpoint says."""
    config = configuration(kind, {**SHORT, "experts": {"kernel": "reference"}})
    state = checkpoint_state(config)
    return moved(create_model(config, state)), state


@every_decoder
def test_safetensors_brings_it_back(kind, tmp_path):
    model, state = tiny_export(kind)
    convert_model(model, state, "safetensors")(tmp_path / "model.safetensors")
    loaded, *_ = load_exported(tmp_path / "model.safetensors")
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        mine, theirs = model(image).predictions, loaded(image).predictions
    torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)  # by another kernel, where there is one
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("format", "tolerance"), [("pt2", 1e-5), ("onnx", 1e-4)])
@every_decoder
def test_exported_programs_predict_as_the_model(kind, format, tolerance, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    model, state = tiny_export(kind)
    convert_model(model, state, format)(tmp_path / f"model.{format}")
    found = verify.differences(model, format, tmp_path / f"model.{format}")
    assert max(difference.relative for difference in found.values()) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_decoder
def test_it_trains_on_two_ranks_and_goes_on_on_another_number(kind, precision, runs):
    own = {f"decoder__{key}": value for key, value in settings_of(kind).items()}
    # The balance losses weigh what is computed at one time, which another world changes.
    alike = {**own, "train__precision": precision, "train__checkpoint_every": 2, "train__steps": 4,
             "experts__balance_weight": 0}  # fmt: skip
    # No accumulation, as batch norm is over the images of all ranks that are computed at one time.
    lines = runs.train("two", 2, **alike, train__micro_batch_size=2)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    checkpoint = str(runs.folder("two") / "checkpoints/step-00000002")
    again = runs.train("again", 2, resume=checkpoint, **alike, train__micro_batch_size=2)
    assert losses(again) == losses(lines, after=2), "bit for bit where nothing changed"
    alone = runs.train("one", 1, resume=checkpoint, **alike, train__micro_batch_size=4)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert losses(alone) == pytest.approx(losses(lines, after=2), rel=tolerance)
