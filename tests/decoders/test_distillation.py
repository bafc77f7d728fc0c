"""PAD-Net and MTI-Net, without their messages and with them, against plain computations.

Legend: B images, C channels, h x w grid, T tasks.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.decoders.mti_net import Propagation
from fgmoe_dist.decoders.parts.distillation import Distillation
from fgmoe_dist.decoders.parts.residual import Basic, Bottleneck
from tests.decoders.tiny import INFO, levels, tiny_decoder

C, TASKS = 8, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def close(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def maps(count: int = TASKS) -> list[torch.Tensor]:
    return list(torch.randn(count, 2, C, 4, 6))


def normed(x_BChw: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    mean, variance = x_BChw.mean(1, keepdim=True), x_BChw.var(1, keepdim=True, unbiased=False)
    scale, shift = (p[None, :, None, None] for p in (norm.weight, norm.bias))
    return (x_BChw - mean) / (variance + norm.eps).sqrt() * scale + shift


def silence(distillation: Distillation) -> None:
    """Attention is sigmoid(-large): exactly zero."""
    for messages in distillation.messages:
        for message in messages:
            nn.init.zeros_(message.attention.weight)
            nn.init.constant_(message.attention.bias, -1e4)


def test_residual_blocks_are_their_equations():
    x_BChw, bottleneck, basic = torch.randn(2, 4, 5, 6), Bottleneck(4, C), Basic(C, C)
    first, norm1, _, second, norm2, _, third, norm3 = bottleneck.branch
    assert (first.weight.shape, second.weight.shape) == ((2, 4, 1, 1), (2, 2, 3, 3))
    y = normed(F.conv2d(x_BChw, first.weight), norm1).relu()
    y = normed(F.conv2d(y, second.weight, padding=1), norm2).relu()
    y = normed(F.conv2d(y, third.weight), norm3)
    project, norm = bottleneck.project
    y = (y + normed(F.conv2d(x_BChw, project.weight), norm)).relu()
    close(bottleneck(x_BChw), y)
    first, norm1, _, second, norm2 = basic.branch
    z = normed(F.conv2d(normed(F.conv2d(y, first.weight, padding=1), norm1).relu(), second.weight, padding=1), norm2)
    close(basic(y), (y + z).relu())
    assert basic.project is None


def test_a_distilled_feature_is_its_equation():
    distillation, x_T = Distillation(C, TASKS), maps()
    for task, found in enumerate(distillation(x_T)):
        expected, others = x_T[task].clone(), [other for other in range(TASKS) if other != task]
        for message, other in zip(distillation.messages[task], others):
            gate = F.conv2d(x_T[other], message.attention.weight, message.attention.bias, padding=1)
            value = F.conv2d(x_T[other], message.value.weight, message.value.bias, padding=1)
            expected += value / (1 + (-gate).exp())
        close(found, expected)


def test_pad_net_without_attention_is_a_network_of_each_task_on_one_feature():
    decoder = tiny_decoder("pad_net")
    silence(decoder.distillation)
    output = decoder(levels())
    a_BChw, _ = decoder.aggregator(levels(), decoder.grid_hw)
    (step,) = output.intermediate
    assert (step.name, step.weight) == ("preliminary", 1)
    for index, task in enumerate(INFO.tasks):
        feature = decoder.preliminary.features[index](a_BChw)
        small = decoder.heads[index](feature)
        resized = F.interpolate(small, decoder.size_hw, mode="bilinear", align_corners=False)
        assert torch.equal(output.predictions[task], resized)
        assert torch.equal(step.predictions[task], decoder.preliminary.predict[index](feature))


def test_mti_net_of_one_scale_without_attention_is_the_same_up_to_its_head():
    decoder = tiny_decoder("mti_net", scales=1)
    assert len(decoder.propagation) == 0
    silence(decoder.distillation[0])
    output = decoder(levels())
    a_BChw, _ = decoder.aggregators[0](levels(), decoder.grids[0])
    for index, task in enumerate(INFO.tasks):
        feature = decoder.preliminary[0].features[index](a_BChw)
        conv, norm, _, predict = decoder.heads[index]
        small = predict(normed(F.conv2d(feature, conv.weight), norm).relu())
        close(output.predictions[task], F.interpolate(small, decoder.size_hw, mode="bilinear", align_corners=False))


def test_where_nothing_is_taken_from_coarser_scales_the_finest_is_mti_net_of_one_scale():
    decoder, alone = tiny_decoder("mti_net", scales=3), tiny_decoder("mti_net", scales=1)
    alone.aggregators[0].load_state_dict(decoder.aggregators[0].state_dict())
    channels = decoder.settings.channels
    for mine, theirs in zip(decoder.preliminary[0].features, alone.preliminary[0].features):
        first = mine[0]  # reads the scale's own feature, then what came
        for conv in (first.branch[0], first.project[0]):
            nn.init.zeros_(conv.weight[:, channels:].data)
        # What comes is left out of both ways through the block; the other one has no projection, so give it one.
        theirs[0].branch.load_state_dict({
            name: value[:, :channels] if name == "0.weight" else value
            for name, value in first.branch.state_dict().items()
        })  # fmt: skip
        theirs[0].project = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), first.project[1])
        theirs[0].project[0].weight.data = first.project[0].weight.data[:, :channels]
        theirs[1].load_state_dict(mine[1].state_dict())
    alone.preliminary[0].predict.load_state_dict(decoder.preliminary[0].predict.state_dict())
    finest, only = (model(levels()).intermediate[-1] for model in (decoder, alone))
    assert finest.name == only.name == "scale0"
    for task in INFO.tasks:
        close(finest.predictions[task], only.predictions[task])


def test_scales_halve_and_round_up():
    decoder = tiny_decoder("mti_net", scales=4)
    assert decoder.grids == [(14, 18), (7, 9), (4, 5), (2, 3)]
    output = decoder(levels())
    sizes = {step.name: step.predictions["depth"].shape[-2:] for step in output.intermediate}
    assert sizes == {f"scale{scale}": grid for scale, grid in enumerate(decoder.grids)}


def test_what_is_propagated_is_its_equation():
    propagation, x_T = Propagation(C, TASKS), maps()
    logits_T = propagation.mask(torch.cat(x_T, 1)).split(C, dim=1)
    total = sum(logits.exp() for logits in logits_T)
    common = propagation.reduce(torch.cat([logits.exp() / total * x for logits, x in zip(logits_T, x_T)], 1))
    for x_BChw, excite, found in zip(x_T, propagation.excite, propagation(x_T)):
        first, _, second = excite.gate
        mean_BC = common.mean((2, 3))
        hidden = (mean_BC @ first.weight[:, :, 0, 0].T + first.bias).relu()
        gate_BC = torch.sigmoid(hidden @ second.weight[:, :, 0, 0].T + second.bias)
        close(found, x_BChw + gate_BC[:, :, None, None] * common)


def test_images_do_not_see_each_other():
    for kind in ("pad_net", "mti_net"):
        decoder = tiny_decoder(kind)
        both, alone = decoder(levels()).predictions, decoder([level[:1] for level in levels()]).predictions
        for name in both:
            close(both[name][:1], alone[name])
