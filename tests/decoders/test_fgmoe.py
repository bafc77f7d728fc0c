"""The decoder's parts, each against an independent computation, and the whole model.

Legend: B images, C channels, h x w grid, T tasks, N tokens, S shared experts, G global experts, H hidden size.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.config import build_config
from fgmoe_dist.decoders.base import parameter_counts
from fgmoe_dist.decoders.parts.aggregator import Aggregator, ConvAggregator
from fgmoe_dist.decoders.parts.block import FGMoEBlock
from fgmoe_dist.decoders.parts.heads import Head
from fgmoe_dist.decoders.parts.mixer import ChannelOffsets, DeformableConv1x1, deformable_mixer
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.balance import auxiliary_losses
from fgmoe_dist.experts.bank import CrossTaskExperts, GlobalExperts, SharedExperts
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.model import create_model
from fgmoe_dist.planning.traffic import exchange_bytes
from tests.decoders.tiny import levels as tiny_levels
from tests.decoders.tiny import tiny_decoder
from tests.experts.oracle import fine_expert, routed_experts
from tests.runs import SETTINGS

C, TASKS, FFN = 8, 3, KINDS["ffn"]
LEVELS = [(6, 4, 5), (10, 2, 3)]  # channels, h, w
GRID = (8, 10)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def close(mine, theirs, tolerance=1e-5):
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


# Aggregator


def levels() -> list[torch.Tensor]:
    return [torch.randn(2, *shape) for shape in LEVELS]


def resized(maps: list[torch.Tensor]) -> torch.Tensor:
    """The definition: every level on the grid, side by side."""
    return torch.cat([F.interpolate(x, GRID, mode="bilinear", align_corners=False) for x in maps], dim=1)


def normed(x_BChw: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    mean, variance = x_BChw.mean(1, keepdim=True), x_BChw.var(1, keepdim=True, unbiased=False)
    scale, shift = (p[None, :, None, None] for p in (norm.weight, norm.bias))
    return F.gelu((x_BChw - mean) / (variance + norm.eps).sqrt() * scale + shift)


def project_concatenation(aggregator: Aggregator, maps: list[torch.Tensor]) -> torch.Tensor:
    weight_CK = torch.cat([conv.weight for conv in aggregator.project], dim=1)
    return F.conv2d(resized(maps), weight_CK)


def test_projecting_first_is_projecting_the_concatenation():
    aggregator, maps = Aggregator([6, 10], C, TASKS), levels()
    shared, own = aggregator(maps, GRID)
    close(shared, normed(project_concatenation(aggregator, maps), aggregator.norm))
    assert len(own) == TASKS and all(o is shared for o in own)


def test_a_task_weighs_the_levels_for_itself():
    aggregator, maps = Aggregator([6, 10], C, 2, level_weights=True), levels()
    aggregator.level_weights_TL.data = torch.tensor([[1.0, 1.0], [0.5, -2.0]])
    shared, own = aggregator(maps, GRID)
    close(own[0], shared)
    close(own[1], normed(project_concatenation(aggregator, [0.5 * maps[0], -2 * maps[1]]), aggregator.norm))


def test_an_adapter_starts_at_nothing_and_is_a_low_rank_projection_of_each_task():
    aggregator, maps, rank = Aggregator([6, 10], C, TASKS, adapter_rank=2), levels(), 2
    shared, own = aggregator(maps, GRID)
    assert all(torch.equal(o, shared) for o in own)
    nn.init.normal_(aggregator.up.weight)
    _, own = aggregator(maps, GRID)
    down_RK = torch.cat([conv.weight for conv in aggregator.down], dim=1)[:, :, 0, 0]
    for t in range(TASKS):
        up_Cr = aggregator.up.weight[C * t : C * (t + 1), :, 0, 0]
        product_CK = up_Cr @ down_RK[rank * t : rank * (t + 1)]
        extra = F.conv2d(resized(maps), product_CK[:, :, None, None])
        close(own[t], normed(project_concatenation(aggregator, maps) + extra, aggregator.norm), 1e-4)


def convolved(x_BChw: torch.Tensor, layers: nn.Sequential) -> torch.Tensor:
    """Twice: a 3x3 convolution as nine shifted 1x1 ones, norm, ReLU."""
    h, w = x_BChw.shape[-2:]
    for conv, norm in (layers[0:2], layers[3:5]):
        padded = F.pad(x_BChw, (1, 1, 1, 1))
        taps = [(i, j) for i in range(3) for j in range(3)]
        y_BChw = sum(
            torch.einsum("bchw,kc->bkhw", padded[..., i : i + h, j : j + w], conv.weight[..., i, j]) for i, j in taps
        )
        mean, variance = y_BChw.mean(1, keepdim=True), y_BChw.var(1, keepdim=True, unbiased=False)
        x_BChw = ((y_BChw - mean) / (variance + norm.eps).sqrt()).clamp(min=0)
    return x_BChw


def test_convolutions_of_each_level_are_resized_and_convolved_together():
    aggregator, maps = ConvAggregator([6, 10], C, TASKS), levels()
    shared, own = aggregator(maps, GRID)
    assert [layers[3].weight.shape[0] for layers in aggregator.levels] == [C // 2, C // 2]
    narrow = resized([convolved(x, layers) for x, layers in zip(maps, aggregator.levels)])
    close(shared, convolved(narrow, aggregator.join))
    assert len(own) == TASKS and all(o is shared for o in own)


# Deformable mixer


def test_zero_offsets_are_a_plain_convolution():
    layer, x = DeformableConv1x1(C), torch.randn(2, C, 5, 7)
    close(layer(x), F.conv2d(x, layer.mix.weight, layer.mix.bias))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-3, 1)])
def test_whole_offsets_shift_and_see_zeros_outside(right, down):
    layer, x = DeformableConv1x1(C), torch.randn(2, C, 5, 7)
    layer.offset.bias.data = torch.tensor([float(right), float(down)])
    shifted = torch.zeros_like(x)
    for row in range(5):
        for column in range(7):
            if 0 <= row + down < 5 and 0 <= column + right < 7:
                shifted[:, :, row, column] = x[:, :, row + down, column + right]
    close(layer(x), F.conv2d(shifted, layer.mix.weight, layer.mix.bias))


def test_half_an_offset_is_the_mean_of_two():
    layer, x = DeformableConv1x1(C), torch.randn(1, C, 3, 4)
    layer.offset.bias.data = torch.tensor([0.5, 0.0])
    between = (x[..., :-1] + x[..., 1:]) / 2
    close(layer(x)[..., :-1], F.conv2d(between, layer.mix.weight, layer.mix.bias))


def test_offsets_learn():
    layer = DeformableConv1x1(C)
    layer(torch.randn(1, C, 5, 7)).square().sum().backward()
    assert layer.offset.weight.grad.abs().max() > 0


def offsets_of_each_channel(layer: ChannelOffsets, x_BChw: torch.Tensor) -> torch.Tensor:
    """By its definition: positions cell by cell, two convolutions in the place of a grouped one. `[B, C, 2, h, w]`."""
    h, w = x_BChw.shape[-2:]
    near = F.conv2d(x_BChw, layer.shift.weight, layer.shift.bias, padding=1)
    for tap in range(9):
        for row in range(h):
            for column in range(w):
                near[:, tap, row, column] += row + 1 + tap // 3 - 1
                near[:, 9 + tap, row, column] += column + 1 + tap % 3 - 1
    weights, biases = layer.spread.weight.chunk(2), layer.spread.bias.chunk(2)
    halves = [F.conv2d(x, weight, bias, padding=1) for x, weight, bias in zip(near.chunk(2, 1), weights, biases)]
    return torch.cat(halves, 1).unflatten(1, (-1, 2))


def interpolated(x_hw: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """Bilinear, with zeros outside."""
    total, top, left = torch.zeros((), dtype=x_hw.dtype), math.floor(row), math.floor(column)
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < len(x_hw) and 0 <= c < len(x_hw[0]):
                total = total + (1 - abs(row - r)) * (1 - abs(column - c)) * x_hw[r, c]
    return total


def test_each_channel_is_sampled_at_its_own_offset():
    layer, x = DeformableConv1x1(C, "channel").double(), torch.randn(2, C, 3, 5).double()
    nn.init.normal_(layer.offset.shift.weight, std=0.1)
    offset_BC2hw = offsets_of_each_channel(layer.offset, x)
    sampled = torch.zeros_like(x)
    for b, c, row, column in np.ndindex(*x.shape):
        right, down = offset_BC2hw[b, c, :, row, column].tolist()
        sampled[b, c, row, column] = interpolated(x[b, c], row + down, column + right)
    assert 0.1 < (sampled != 0).double().mean() < 0.9, "some look outside, some do not"
    close(layer(x), F.conv2d(sampled, layer.mix.weight, layer.mix.bias), 1e-10)


def test_channels_look_elsewhere_at_first_by_their_place_alone():
    layer = ChannelOffsets(C)
    first, second = layer(torch.randn(2, C, 5, 7))
    assert torch.equal(first, second) and first.unflatten(0, (C, 2)).std(0).min() > 0.01
    layer(torch.randn(1, C, 5, 7)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("offsets", ["shared", "channel"])
def test_places_are_not_rounded_to_bf16(offsets):
    layer, x = DeformableConv1x1(C, offsets), torch.randn(1, C, 2, 300)
    close(layer.bfloat16()(x.bfloat16()), layer.float()(x.bfloat16().float()), 0.02)


def test_no_mixer_layers_leave_the_feature_alone():
    x = torch.randn(1, C, 3, 4)
    assert torch.equal(deformable_mixer(C, 0)(x), x)
    assert deformable_mixer(C, 2)(x).shape == deformable_mixer(C, 2, "channel")(x).shape == x.shape


def test_a_head_resizes_to_the_input_and_answers_in_fp32():
    prediction = Head(C, 5).bfloat16()(torch.randn(2, C, 3, 4).bfloat16(), (12, 16))
    assert prediction.shape == (2, 5, 12, 16) and prediction.dtype == torch.float32


def test_a_narrow_head_is_its_equation():
    head, x = Head(C, 5, hidden=3), torch.randn(2, C, 6, 7)
    hidden = F.conv2d(x, head.conv.weight, padding=1)
    assert hidden.shape[1] == 3
    hidden = F.layer_norm(hidden.movedim(1, -1), (3,)).movedim(-1, 1).clamp(min=0)
    close(
        head(x, (6, 7)),
        torch.einsum("bchw,kc->bkhw", hidden, head.predict.weight[..., 0, 0]) + head.predict.bias[:, None, None],
    )


# Experts that stay at home


def initial(identity: tuple, hidden: int) -> list[torch.Tensor]:
    return [value.double() for value in FFN.initial(C, hidden, *identity).values()]


@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_are_a_sum_over_experts(gated):
    shared = SharedExperts(FFN, TASKS, C, 6, 2, "id").double()
    for bias in (shared.b_in_TH, shared.b_out_TSC):
        nn.init.normal_(bias)
    x_TNC = torch.randn(TASKS, 4, C).double()
    gate_TNS = torch.rand(TASKS, 4, 2).double() if gated else None
    expected = torch.zeros_like(x_TNC)
    for t in range(TASKS):
        for s in range(2):
            w_in_CH, _, w_out_HC, _ = initial(("id", "shared", t, s), 6)
            b_in_H, b_out_C = shared.b_in_TH[t, 6 * s : 6 * s + 6], shared.b_out_TSC[t, s]
            for n in range(4):
                gate = gate_TNS[t, n, s] if gated else 1
                expected[t, n] += gate * fine_expert(x_TNC[t, n], w_in_CH, b_in_H, w_out_HC, b_out_C)
    close(shared(x_TNC, gate_TNS), expected)


def test_global_experts_are_mixed_by_feature_and_task():
    layer = GlobalExperts(FFN, TASKS, C, 6, 2, "id").double()
    nn.init.normal_(layer.b_in_GH)
    nn.init.normal_(layer.gate_bias_TG)
    a_NC = torch.randn(4, C).double()
    expected = torch.zeros(TASKS, 4, C).double()
    for t in range(TASKS):
        for n in range(4):
            gates = torch.softmax(a_NC[n] @ layer.gate_TCG[t] + layer.gate_bias_TG[t], 0)
            for g in range(2):
                w_in_CH, _, w_out_HC, b_out_C = initial(("id", "global", g), 6)
                expected[t, n] += gates[g] * fine_expert(a_NC[n], w_in_CH, layer.b_in_GH[g], w_out_HC, b_out_C)
    close(layer(a_NC), expected)


def cross_task_experts(tasks: int) -> CrossTaskExperts:
    layer = CrossTaskExperts(FFN, tasks, C, 6, 2, "id").double()
    for parameter in (layer.b_in_GH, layer.gate_bias_TG, layer.read_TCG, layer.read_bias_TG):
        nn.init.normal_(parameter)
    return layer


def test_global_experts_that_cross_tasks_read_and_are_read_by_feature_and_task():
    layer, x_TNC = cross_task_experts(TASKS), torch.randn(TASKS, 4, C).double()
    expected = torch.zeros_like(x_TNC)
    for n in range(4):
        scores = torch.stack([x_TNC[s, n] @ layer.read_TCG[s] + layer.read_bias_TG[s] for s in range(TASKS)])
        for g in range(2):
            w_in_CH, _, w_out_HC, b_out_C = initial(("id", "global", g), 6)
            share_T = torch.softmax(scores[:, g], 0)
            read_C = sum(share_T[s] * x_TNC[s, n] for s in range(TASKS))
            out_C = fine_expert(read_C, w_in_CH, layer.b_in_GH[g], w_out_HC, b_out_C)
            for t in range(TASKS):
                gates_G = torch.softmax(x_TNC[t, n] @ layer.gate_TCG[t] + layer.gate_bias_TG[t], 0)
                expected[t, n] += gates_G[g] * out_C
    close(layer(x_TNC), expected)


def test_tasks_that_change_places_change_places():
    layer, x_TNC, order = cross_task_experts(TASKS), torch.randn(TASKS, 4, C).double(), [2, 0, 1]
    expected = layer(x_TNC)[order]
    for name in ("gate_TCG", "gate_bias_TG", "read_TCG", "read_bias_TG"):
        getattr(layer, name).data = getattr(layer, name).data[order]
    close(layer(x_TNC[order]), expected)


def test_one_task_alone_reads_itself_and_at_first_the_mean_is_read():
    layer, x_1NC = cross_task_experts(1), torch.randn(1, 4, C).double()
    gates_NG = (x_1NC[0] @ layer.gate_TCG[0] + layer.gate_bias_TG[0]).softmax(-1)
    answers_NC = []
    for g in range(2):
        w_in_CH, _, w_out_HC, b_out_C = initial(("id", "global", g), 6)
        answers_NC.append(F.gelu(x_1NC[0] @ w_in_CH + layer.b_in_GH[g]) @ w_out_HC + b_out_C)
    close(layer(x_1NC)[0], sum(gates_NG[:, g, None] * answers_NC[g] for g in range(2)))
    fresh, x_TNC = CrossTaskExperts(FFN, TASKS, C, 6, 2, "id").double(), torch.randn(TASKS, 4, C).double()
    close(fresh(x_TNC), fresh._mixed(x_TNC.mean(0).expand(2, 4, C), x_TNC))


@pytest.mark.parametrize("kind", ["fgmoe", "dense"])
@pytest.mark.parametrize(("reads", "crosses"), [("aggregated", False), ("tasks", True)])
def test_what_a_task_has_found_reaches_the_others_only_where_global_experts_read_it(kind, reads, crosses):
    decoder, mixed = tiny_decoder(kind, {"experts": {"global_input": reads}}, blocks=1), {}
    for task, mixer in zip(decoder.tasks, decoder.mixers):
        mixer.register_forward_hook(lambda module, given, answer, name=task.name: mixed.update({name: answer}))
    predictions = decoder(tiny_levels()).predictions
    for name, prediction in predictions.items():
        gradients = torch.autograd.grad(prediction.sum(), list(mixed.values()), retain_graph=True, allow_unused=True)
        for other, gradient in zip(mixed, gradients):
            assert bool(gradient.any()) == (crosses or other == name)


def test_blocks_before_the_last_are_everybody_s_where_global_experts_cross_tasks():
    decoder = tiny_decoder("fgmoe", {"experts": {"global_input": "tasks"}}, blocks=2)
    shared = {id(parameter) for parameter in decoder.shared_parameters()}
    own = {id(parameter) for parameter in decoder.own_parameters()}
    first, last = decoder.blocks
    assert all(id(p) in shared for part in (*decoder.mixers, first) for p in part.parameters())
    assert not any(id(p) in shared for p in last.routed.bank.parameters())
    assert {id(last.global_experts.read_TCG), id(last.global_experts.read_bias_TG)} <= shared
    assert {id(last.global_experts.gate_TCG), id(last.shared.w_in_TCH), id(last.routed.routers.weight_TCE)} <= own


@pytest.mark.parametrize(
    "options",
    [{}, {"renormalise": True}, {"shared": 0, "global_experts": 0}, {"global_input": "tasks"}],
)
def test_a_block_is_its_equation(options):
    config = Experts(**{**dict(count=2, split=2, hidden=12, top_k=2, shared=2, global_experts=2), **options})
    block = FGMoEBlock(TASKS, C, config, ep_size=1, block=1, seed=4).double()
    u_TNC, a_NC = torch.randn(TASKS, 5, C).double(), torch.randn(5, C).double()
    x_TNC = F.layer_norm(u_TNC, (C,))
    weights = {(t, e): initial((4, "block", 1, t, e), 6) for t in range(TASKS) for e in range(4)}
    expected = u_TNC + routed_experts(x_TNC, block.routed.routers.weight_TCE, weights, config)
    for t in range(TASKS):
        for n in range(5):
            for s in range(config.shared):
                expected[t, n] += fine_expert(x_TNC[t, n], *initial((4, "block", 1, "shared", t, s), 6))
    if config.global_experts:
        reads = x_TNC if config.global_input == "tasks" else F.layer_norm(a_NC, (C,))
        expected = expected + block.global_experts(reads)
    h_TNC, *_ = block(u_TNC, a_NC)
    close(h_TNC, expected)


def test_gates_in_common_share_one_softmax():
    config = Experts(count=2, split=2, hidden=12, top_k=2, shared=2, shared_gate="joint")
    block = FGMoEBlock(1, C, config, ep_size=1, block=0, seed=0).double()
    x_1NC = torch.randn(1, 5, C).double()
    routing = block.routed.routers(x_1NC)
    close(routing.weight_TNK.sum(-1) + routing.shared_TNS.sum(-1), torch.ones(1, 5))
    for n in range(5):
        logits = x_1NC[0, n] @ block.routed.routers.weight_TCE[0]
        chosen = logits[:4].topk(2).indices
        gates = torch.softmax(torch.cat([logits[chosen], logits[4:]]), 0)
        close(torch.cat([routing.weight_TNK[0, n], routing.shared_TNS[0, n]]), gates)


# The whole


INFO = SimpleNamespace(
    tasks=["semseg", "depth", "normals", "edge"], classes={"semseg": ["wall", "floor"]}, boundary_max_dist=0.01
)


def configuration(**changes):
    values = {section: dict(content) if isinstance(content, dict) else content for section, content in SETTINGS.items()}
    for key, value in changes.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    return build_config(values)


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 112, 144, generator=torch.Generator().manual_seed(9))


def gradients(config) -> dict[str, torch.Tensor]:
    """Of every task's output and of the balance losses."""
    model = create_model(config, INFO)
    output = model(image())
    losses, _ = auxiliary_losses(output.terms, config.experts, 1)
    balance = sum(value for _, value in losses.values())
    (sum(p.square().mean() for p in output.predictions.values()) + balance).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_only_the_decoder_trains_and_all_of_it():
    config = configuration(decoder__adapter_rank=2, decoder__level_weights=True)
    for name, gradient in gradients(config).items():
        assert (gradient is None) == name.startswith("encoder."), name
        assert gradient is None or gradient.isfinite().all(), name


@pytest.mark.parametrize("reads", ["aggregated", "tasks"])
def test_recomputing_blocks_changes_no_gradient(reads):
    plain = gradients(configuration(experts__global_input=reads))
    recomputed = gradients(configuration(experts__global_input=reads, train__activation_checkpointing=True))
    assert plain.keys() == recomputed.keys()
    for name in plain:
        if plain[name] is not None:
            close(recomputed[name], plain[name], 1e-6)


def test_the_seed_alone_decides_the_weights():
    first, again, other = (create_model(configuration(run__seed=seed), INFO).decoder.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["aggregator.project.0.weight"], other["aggregator.project.0.weight"])
    assert not torch.equal(first["blocks.0.routed.bank.w_in_ECH"], other["blocks.0.routed.bank.w_in_ECH"])


def test_parameters_are_counted_by_hand():
    config = configuration()
    model = create_model(config, INFO)
    counts = parameter_counts(model.decoder, model.encoder, config.parallel.ep_size)
    c, tasks, blocks, fine, hidden, routed_each = 16, 4, 2, 16, 32, 8
    expert = c * fine + fine + fine * c + c
    routed = blocks * tasks * routed_each * expert
    aggregator = 4 * 192 * c + 2 * c
    mixers = tasks * (2 * (c * c + c) + (2 * c + 2) + 2 * 2 * c)
    a_global = c * hidden + hidden + hidden * c + c
    block = 4 * c + tasks * c * routed_each + tasks * expert + 2 * a_global + tasks * (2 * c + 2)
    heads = sum(9 * c * c + 2 * c + c * k + k for k in (2, 1, 3, 1))
    assert counts["routed"] == routed
    assert counts["trained"] == aggregator + mixers + blocks * block + heads + routed
    # Of what each task has for itself a token passes one task's (heads: the mean), and 3 of its 8 routed experts.
    apart = mixers + heads + blocks * tasks * (c * routed_each + expert + 2 * c + 2)
    idle = blocks * (tasks * routed_each - 3) * expert + apart * 3 // 4
    assert counts["total"] - counts["active"] == idle


def counts_of(config) -> dict[str, int]:
    model = create_model(config, INFO)
    return parameter_counts(model.decoder, model.encoder, config.parallel.ep_size)


@pytest.mark.parametrize(("bank", "reached"), [("task", False), ("shared", True)])
def test_several_tasks_reach_the_experts_of_a_bank_that_they_share(bank, reached):
    decoder = create_model(configuration(experts__bank=bank), INFO).decoder
    shared = {id(parameter) for parameter in decoder.shared_parameters()}
    for block in decoder.blocks:
        assert all((id(parameter) in shared) == reached for parameter in block.routed.bank.parameters())
        assert id(block.norm.weight) in shared and id(block.routed.routers.weight_TCE) not in shared


def test_of_a_bank_that_tasks_share_a_token_passes_k_experts():
    of_each, shared = (counts_of(configuration(experts__bank=bank)) for bank in ("task", "shared"))
    expert = 16 * 16 + 16 + 16 * 16 + 16
    assert (of_each["routed"], shared["routed"]) == (2 * 4 * 8 * expert, 2 * 8 * expert)
    assert of_each["active"] == shared["active"]


def test_one_rank_sends_nothing_and_all_experts_chosen_send_every_token():
    assert exchange_bytes(configuration()) == {"out": 0, "back": 0}
    traffic = exchange_bytes(configuration(experts__top_k=8, parallel__ep_size=2))
    tokens = 4 * 14 * 18
    assert traffic["back"] == tokens * 16 * 4
    assert traffic["out"] == tokens * (16 * 4 + 8 * 8)


def test_predictions_are_as_promised():
    predictions = create_model(configuration(), INFO).eval().predict(image())
    shapes = {name: [(p.shape, p.dtype) for p in both] for name, both in predictions.items()}
    size = (112, 144)
    assert shapes == {
        "semseg": [(size, np.uint8)] * 2, "depth": [(size, np.float32)] * 2,
        "normals": [((*size, 3), np.float32)] * 2, "edge": [(size, np.uint8)] * 2,
    }  # fmt: skip
    assert np.allclose(np.linalg.norm(predictions["normals"][0], axis=-1), 1, atol=1e-5)


def test_images_do_not_see_each_other():
    model = create_model(configuration(), INFO).eval()
    with torch.no_grad():
        both, alone = model(image()).predictions, model(image()[:1]).predictions
    for name in both:
        close(both[name][:1], alone[name], 1e-4)


def test_what_tasks_have_of_the_projections_needs_projections():
    with pytest.raises(UserError, match="adapter_rank=2: .*decoder.aggregator=conv.*level_weights=True: "):
        configuration(decoder__aggregator="conv", decoder__adapter_rank=2, decoder__level_weights=True)


def test_a_stride_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="decoder.stride=5"):
        create_model(configuration(decoder__stride=5), INFO)
