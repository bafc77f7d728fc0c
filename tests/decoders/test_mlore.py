"""MLoRE against its equations, one expert after the other, and against the published sizes.

Legend: B images, T tasks, C channels, X = T C, h x w grid, E experts, N = B T.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.config import build_config, load_config
from fgmoe_dist.decoders.base import Levels, parameter_counts
from fgmoe_dist.decoders.mlore import Join
from fgmoe_dist.decoders.parts.mlore_module import LowRankBank, MLoREModule, Router
from fgmoe_dist.errors import UserError
from fgmoe_dist.model import create_decoder, create_model
from fgmoe_dist.planning.trace import AnyDataset, count
from fgmoe_dist.ranks import Ranks
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.training.trainer import Trainer
from tests.planning.test_trace import PRODUCTS, run_for_real
from tests.ranks import run_ranks
from tests.runs import ROOT, SETTINGS

TASKS, C, RANKS, OWN, TOP_K, GRID = 3, 8, [2, 3, 1, 4, 2], 3, 3, (4, 5)
TINY = {"kind": "mlore", "channels": C, "ranks": RANKS, "own_rank": OWN, "top_k": TOP_K}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def moved(module: nn.Module) -> nn.Module:
    """In fp64, every weight and running statistic away from its first value."""
    with torch.no_grad():
        for value in module.double().state_dict().values():
            value += 0.3 * torch.rand_like(value)
    return module


def tiny_module(inputs: int = TASKS, early: bool = False) -> MLoREModule:
    router = Router(TASKS, C, math.prod(GRID), len(RANKS), TOP_K, early, noise=0.0)
    return moved(MLoREModule(inputs, C, OWN, LowRankBank(C, RANKS), router, TASKS))


# The module, by its equations


def batch_norm(x_BCHW, norm, part):
    """Of one task: `part` are its channels."""
    weight, bias, mean, variance = (
        v[part][:, None, None] for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    if norm.training:
        mean = x_BCHW.mean((0, 2, 3), keepdim=True)
        variance = (x_BCHW - mean).square().mean((0, 2, 3), keepdim=True)
    return (x_BCHW - mean) / (variance + 1e-5).sqrt() * weight + bias


def layer_norm(x, norm, t):
    return F.layer_norm(x, x.shape[-1:], norm.weight_T1C[t, 0], norm.bias_T1C[t, 0])


def linear(x, layer, t):
    return x @ layer.weight_TIO[t] + layer.bias_T1O[t, 0]


def route(router: Router, t: int, z_ChW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and scalar of one image, cell by cell."""
    cells = [z_ChW[:, y, x] for y in range(GRID[0]) for x in range(GRID[1])]
    looks = [linear(F.gelu(layer_norm(linear(z_C, router.squeeze, t), router.squeeze_norm, t)), router.average, t)
             for z_C in cells]  # fmt: skip
    by_cell = sum(looks) / len(cells)
    weighed = torch.stack([linear(z_S, router.weigh, t)[0] for z_S in z_ChW.flatten(1)])
    by_channel = linear(F.gelu(layer_norm(weighed, router.weigh_norm, t)), router.reduce, t)
    decided = linear(torch.cat([by_cell, by_channel]), router.decide, t)
    logits, mix = decided[: len(RANKS)], decided[-1]
    kept = sorted(range(len(RANKS)), key=lambda e: -logits[e])[:TOP_K]
    total = sum(logits[e].exp() for e in (kept if router.early else range(len(RANKS))))
    return torch.stack([logits[e].exp() / total if e in kept else 0 * mix for e in range(len(RANKS))]), mix


def experts_one_by_one(bank: LowRankBank, z_1Chw: torch.Tensor, gate_E: torch.Tensor) -> torch.Tensor:
    total, first = 0.0, 0
    for e, rank in enumerate(RANKS):
        rows = slice(first, first + rank)
        low = F.conv2d(z_1Chw, bank.w_in_RC33[rows], bank.b_in_R[rows], padding=1)
        total = total + gate_E[e] * F.conv2d(low, bank.w_out_CR[:, rows, None, None], bank.b_out_EC[e])
        first += rank
    return total


def naive(module: MLoREModule, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The answer and the gates of each task, whose input is `[B, C, h, w]`."""
    answers, gates = [], []
    for t, x in enumerate(inputs):
        part, low = slice(t * C, (t + 1) * C), slice(t * OWN, (t + 1) * OWN)
        z = F.conv2d(x, module.enter.weight[part], module.enter.bias[part])
        routed = [route(module.router, t, each) for each in z]
        experts = torch.cat([experts_one_by_one(module.bank, one[None], g) for one, (g, _) in zip(z, routed)])
        own = F.conv2d(z, module.down.weight[low], module.down.bias[low], padding=1)
        own = F.conv2d(own, module.up.weight[part], module.up.bias[part])
        mix = torch.stack([s for _, s in routed])[:, None, None, None]
        y = batch_norm(experts, module.expert_norm, part) + mix * own + module.generic(z.detach())
        y = F.gelu(batch_norm(y, module.norm, part))
        answers.append(F.conv2d(y, module.leave.weight[part], module.leave.bias[part]))
        gates.append(torch.stack([g for g, _ in routed]))
    return answers, gates


def run(module: MLoREModule, x: torch.Tensor, by_equations: bool) -> dict[str, torch.Tensor]:
    """Answer, gates, and the gradients of something that every number of them decides."""
    x = x.clone().requires_grad_()
    if by_equations:
        inputs = x.chunk(TASKS, dim=1) if x.shape[1] > C else [x] * TASKS
        answers, gates = naive(module, list(inputs))
        y, gate_BTE = torch.cat(answers, dim=1), torch.stack(gates, dim=1)
    else:
        y, gate_BTE = module(x)
    module.zero_grad()
    ((y - 1).pow(3).mean() + (gate_BTE * torch.arange(len(RANKS))).square().mean()).backward()
    return {"y": y.detach(), "gates": gate_BTE.detach(), "x": x.grad} | {
        name: parameter.grad.clone() for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize(
    ("inputs", "early", "training"), [(1, False, True), (TASKS, True, True), (TASKS, False, False)]
)
def test_a_module_is_its_equations_in_forward_and_gradients(inputs, early, training):
    module = tiny_module(inputs, early).train(training)
    x = torch.randn(2, inputs * C, *GRID).double()
    wide, one_by_one = run(module, x, by_equations=False), run(module, x, by_equations=True)
    for name in one_by_one if training else ("y", "gates"):  # merged, the paths have no gradients of their own
        expected = one_by_one[name]
        assert (wide[name] - expected).norm() <= 1e-9 * expected.norm().clamp(min=1e-6), name
    assert (wide["gates"] > 0).sum(-1).unique().tolist() == [TOP_K]


def test_wide_experts_are_the_fifteen_in_fp32_too():
    ranks = list(range(2, 32, 2))
    bank, z, gate = LowRankBank(16, ranks), torch.randn(3, 16, 6, 7), torch.rand(3, len(ranks))
    y = bank(z, gate)
    whole, first = bank.double(), 0
    expected = torch.zeros_like(z).double()
    for e, rank in enumerate(ranks):
        low = F.conv2d(z.double(), whole.w_in_RC33[first : first + rank], padding=1)
        one = F.conv2d(low, whole.w_out_CR[:, first : first + rank, None, None])
        expected, first = expected + gate[:, e, None, None, None] * one, first + rank
    assert (y - expected).norm() / expected.norm() < 1e-6


def test_merged_is_unmerged_up_to_the_border():
    """Of two images, whose gates differ; the border in particular, where padding could tell them apart."""
    module = tiny_module().eval()
    z = torch.randn(2, TASKS * C, *GRID).double()
    gate, mix = module.router(z.unflatten(1, (TASKS, C)).flatten(3))
    apart, merged = module.paths(z, gate, mix), module.merged(z, gate, mix)
    assert (gate[0] - gate[1]).abs().max() > 1e-3
    for part in (slice(None), (..., 0), (..., -1), (..., 0, slice(None)), (..., -1, slice(None))):
        assert (apart - merged)[part].abs().max() < 1e-9 * apart.abs().max()


def test_first_weights():
    """Kaiming's uniform ones, each expert's by its own rank, as if they were convolutions of their own."""
    bank = LowRankBank(64, [4, 100])
    low, high = bank.w_out_CR.split([4, 100], dim=1)
    assert 0.95 / 2 < low.abs().max() <= 1 / 2 and 0.095 < high.abs().max() <= 0.1
    assert 0.95 < bank.w_in_RC33.abs().max() * math.sqrt(9 * 64) <= 1
    assert not bank.b_in_R.any() and not bank.b_out_EC.any()


def test_gates_before_and_after_the_softmax():
    logits = torch.tensor([[[0.0, 2.0, 1.0, -1.0, 3.0]]])
    late, early = (Router(1, 8, 4, 5, 2, early, 0.0).gates(logits)[0, 0] for early in (False, True))
    e = [math.exp(value) for value in (0, 2, 1, -1, 3)]
    torch.testing.assert_close(late, torch.tensor([0, e[1], 0, 0, e[4]]) / sum(e))
    torch.testing.assert_close(early, torch.tensor([0, e[1], 0, 0, e[4]]) / (e[1] + e[4]))


def test_noise_is_of_training_and_its_scale_is_learnt():
    router = Router(TASKS, C, math.prod(GRID), len(RANKS), TOP_K, early=False, noise=1.0)
    z = torch.randn(2, TASKS, C, math.prod(GRID))
    first, second = router(z)[0], router(z)[0]
    assert not torch.equal(first, second)
    first.square().sum().backward()
    assert router.decide.weight_TIO.grad[..., len(RANKS) : -1].abs().min(1).values.max() > 0
    router.eval()
    assert torch.equal(router(z)[0], router(z)[0])


def test_taps_are_weighed_per_pixel():
    join, features = moved(Join(TASKS, C, 4)), [torch.randn(2, TASKS * C, *GRID).double() for _ in range(4)]
    joined = join(features)
    for t in range(TASKS):
        part, masks = slice(t * C, (t + 1) * C), slice(4 * t, 4 * t + 4)
        own = [feature[:, part] for feature in features]
        hidden = F.conv2d(torch.cat(own, dim=1), join.reduce.weight[part], join.reduce.bias[part])
        hidden = F.gelu(batch_norm(hidden, join.norm, part))
        mask = F.conv2d(hidden, join.mask.weight[masks], join.mask.bias[masks], padding=1).softmax(1)
        expected = sum(mask[:, tap, None] * own[tap] for tap in range(4))
        torch.testing.assert_close(joined[:, part], expected, rtol=1e-9, atol=1e-9)


# The decoder


def configuration(**changes):
    values = {section: dict(content) if isinstance(content, dict) else content for section, content in SETTINGS.items()}
    values["decoder"] = dict(TINY)
    for key, value in changes.items():
        section, name = key.split("__")
        values[section][name] = value
    return build_config(values)


INFO = SimpleNamespace(
    tasks=["semseg", "depth", "normals", "edge"], classes={"semseg": ["wall", "floor"]}, boundary_max_dist=0.01
)


def by_hand(channels, ranks, own, cells, encoder, outputs) -> int:
    """The parameters of a decoder, from the equations."""
    tasks, quarter, experts = len(outputs), channels // 4, len(ranks)
    square = channels * channels + channels
    by_cell = channels * quarter + quarter + 2 * quarter + quarter * quarter + quarter
    by_channel = cells + 1 + 2 * channels + channels * quarter + quarter
    decide = (2 * quarter + 1) * (2 * experts + 1)
    bank = sum(9 * channels * r + r + r * channels + channels for r in ranks)
    lora = 9 * channels * own + own + own * channels + channels
    each_task = square + by_cell + by_channel + decide + lora + 4 * channels + square
    modules = 8 * (tasks * each_task + bank + 9 * channels * channels + channels)
    mask = 4 * channels * channels + channels + 2 * channels + 9 * channels * 4 + 4
    head = 9 * channels * channels + channels + 2 * channels
    predict = sum(channels * k + k for k in outputs)
    return modules + 4 * (encoder * channels + channels) + tasks * (mask + head) + predict


@pytest.mark.parametrize(
    ("preset", "parameters", "encoder", "outputs", "millions"),
    [
        ("pascal_vitl", 103_541_926, 1024, (21, 7, 2, 3, 1), 103.54),
        ("pascal_vitb", 172_698_614, 768, (21, 7, 2, 3, 1), 172.70),
        ("nyud_vitl", 247_493_437, 1024, (40, 1, 3, 1), 247.49),
    ],
)
def test_presets_have_the_published_size(preset, parameters, encoder, outputs, millions):
    config = load_config(ROOT / f"configs/decoders/mlore_{preset}.yaml")
    tasks = create_tasks(config.tasks, AnyDataset(config))
    with torch.device("meta"):
        decoder = create_decoder(config, Levels([encoder] * 4, [16] * 4), tasks)
    assert sum(p.numel() for p in decoder.parameters()) == parameters and round(parameters / 1e6, 2) == millions
    cells = math.prod(config.data.image_size) // 16**2
    settings = config.decoder
    assert parameters == by_hand(settings.channels, settings.ranks, settings.own_rank, cells, encoder, outputs)
    assert len(settings.ranks) == 15 and settings.top_k == 9


def test_parameters_are_counted():
    config = configuration()
    model = create_model(config, INFO)
    counts, trained = parameter_counts(model.decoder, model.encoder, 1), by_hand(C, RANKS, OWN, 63, 192, (2, 1, 3, 1))
    encoder = sum(p.numel() for p in model.encoder.parameters())
    bank = 8 * sum(9 * C * r + r + r * C + C for r in RANKS)
    shared = bank + 8 * (9 * C * C + C) + 4 * (192 * C + C)
    assert (counts["trained"], counts["total"], counts["routed"]) == (trained, trained + encoder, 0)
    # A token passes its own task's parts (in the mean), and 3 of the 5 experts.
    assert counts["total"] - counts["active"] == (trained - shared) * 3 // 4 + bank * 2 // 5
    found = sum(p.numel() for p in model.decoder.shared_parameters())
    assert found == shared and not model.decoder.notes()


def test_all_of_it_trains_and_the_generic_path_changes_no_feature():
    decoder = create_model(configuration(), INFO).decoder.train()
    output = decoder([torch.randn(2, 192, 7, 9) for _ in range(4)])
    auxiliary = decoder.auxiliary(output)
    weight, balance = auxiliary.losses["mlore/balance_loss"]
    (sum(p.square().mean() for p in output.predictions.values()) + weight * balance).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert auxiliary.counts["load"].shape == (8, 4, 5) and auxiliary.counts["load"].sum().item() == 8 * 4 * 2 * TOP_K
    figures = decoder.metrics(auxiliary.counts)
    assert figures["mlore/gate_entropy/module7"] > 0.5 and "mlore/dead/module0/depth" in figures
    assert decoder.pictures(auxiliary.counts, "")["expert_load"].shape[-1] == 3


def test_the_balance_loss_is_its_definition():
    decoder = create_model(configuration(), INFO).decoder
    gates = [torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(8)]
    (weight, loss), expected = decoder.auxiliary(SimpleNamespace(terms=gates)).losses["mlore/balance_loss"], 0.0
    for gate in gates:
        pooled = torch.stack([sum(gate[b, t, e] for b in range(2) for t in range(4)) / 8 for e in range(5)])
        mean = sum(pooled) / 5
        expected = expected + sum((v - mean) ** 2 for v in pooled) / 4 / mean**2
    torch.testing.assert_close(loss, expected)
    assert weight == decoder.settings.balance_weight
    for ours, theirs in zip(torch.autograd.grad(loss, gates), torch.autograd.grad(expected, gates)):
        torch.testing.assert_close(ours, theirs)


def test_predictions_are_per_image_in_evaluation():
    model = create_model(configuration(), INFO).eval()
    image = torch.randn(2, 3, 112, 144, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        both, alone = model(image).predictions, model(image[:1]).predictions
    for task in model.tasks:
        assert both[task.name].shape == (2, task.channels, 112, 144) and both[task.name].dtype == torch.float32
        torch.testing.assert_close(both[task.name][:1], alone[task.name], rtol=1e-4, atol=1e-4)


def test_what_it_cannot_do_is_said():
    decoder = create_model(configuration(), INFO).decoder
    with pytest.raises(UserError, match=r"weigh the \(7, 9\) cells of data.image_size=\[112, 144\], .* \(7, 8\)"):
        decoder([torch.randn(1, 192, 7, 8)] * 4)
    with pytest.raises(UserError, match=r"strides \[8, 16\]; choose a plain ViT"):
        create_decoder(configuration(), Levels([4, 4], [8, 16]), decoder.tasks)
    for change, said in (
        (dict(decoder__top_k=6), "decoder.top_k=6 is more than the 5 experts"),
        (dict(decoder__ranks=[0, 1, 2]), "a rank is 1 or more"),
        (dict(train__activation_checkpointing=True), "activation_checkpointing=true: .* set it to false"),
        (dict(decoder__channels=10), "multiple of 4"),
    ):
        with pytest.raises(UserError, match=said):
            configuration(**change)


def test_a_plan_counts_what_the_model_has():
    config = configuration(decoder__channels=32)
    found, decoder, real = count(config), create_model(config, AnyDataset(config)).decoder, run_for_real(config)
    assert found.dense_parameters == sum(p.numel() for p in decoder.parameters()) and found.expert_parameters == 0
    work = [w for w in found.work if w.kind in PRODUCTS and w.part != "encoder"]
    forward, backward = (sum(w.amount for w in work if w.backward == way) for way in (False, True))
    assert forward == real["forward"]
    # Twice the forward pass, but for gradients of the encoder's levels and of what the generic paths read. (torch's
    # counter takes the weights of a grouped convolution for a whole one's here.)
    cells, c = 7 * 9, 32
    assert backward == 2 * forward - 4 * 2 * cells * 192 * c - 8 * 4 * 2 * cells * 9 * c * c
    assert found.saved_bytes == pytest.approx(real["kept"], rel=0.02)


def test_the_trainer_trains_it(runs):
    """In this process, by plain autograd; tests/decoders/test_mlore_runs.py has the rest of the road."""
    settings = {f"decoder__{key}": value for key, value in TINY.items()}
    trainer = Trainer(runs.config(**settings), Ranks(0, 1, 0, torch.device("cpu")), engine="plain")
    reports = [trainer.train_step() for _ in range(3)]
    losses = [float(report.losses["total"]) for report in reports]
    assert losses[-1] < losses[0] and reports[0].losses["mlore/balance_loss"] > 0
    assert reports[0].counts["load"].shape == (8, 4, 5) and trainer.notes == []
    assert trainer.model.decoder.head_norm.running_mean.abs().max() > 0


# Over ranks


def gradients(part: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Of the tasks' and the balance loss of some of four images, without noise, which belongs to images' places."""
    decoder = create_model(configuration(decoder__noise=0.0, decoder__balance_weight=0.5), INFO).decoder.double()
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(4, 192, 7, 9, generator=generator).double()[part] for _ in range(4)]
    output = decoder.train()(levels)
    auxiliary = decoder.auxiliary(output)
    total = sum((p.double() - 1).square().mean() for p in output.predictions.values())
    total = total + sum(weight * loss for weight, loss in auxiliary.losses.values())
    total.backward()
    found = {name: p.grad.numpy() for name, p in decoder.named_parameters()}
    found |= {name: buffer.numpy() for name, buffer in decoder.named_buffers() if "running" in name}
    return found | {"gates": auxiliary.counts["gates"].numpy()}


def gradients_on_rank() -> dict[str, torch.Tensor]:
    import torch.distributed as dist

    return gradients(slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2))


def test_two_ranks_compute_what_one_does():
    """An engine takes the mean of the ranks' gradients. The predictions, which are fp32, bound how well they agree."""
    first, second = run_ranks(2, gradients_on_rank)
    for name, expected in gradients().items():
        both = torch.from_numpy(first[name] + second[name]) / 2
        size = max(abs(expected).max(), 1e-3)
        assert abs(both.numpy() - expected).max() < 1e-5 * size, name
