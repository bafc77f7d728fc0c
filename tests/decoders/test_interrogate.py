"""InterroGate: gates by hand, and a pruned model against the one it comes from.

Legend: B images, C channels, h x w grid, L layers, T tasks.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fgmoe_dist.checkpoints.checkpoint import load_model
from fgmoe_dist.decoders.interrogate import GatedLayer, Interrogate, InterrogateSettings, to_gates
from fgmoe_dist.errors import UserError
from fgmoe_dist.pruning.units import open_gates, without_units
from tests.decoders.tiny import INFO, configuration, decoder_of, levels, tiny_decoder
from tests.runs import fgmoe

C, TASKS = 6, 3


def scattered(decoder: Interrogate, close: float = 0.5) -> Interrogate:
    """In evaluation and float64, its numbers moved, a share of its gates closed."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in decoder.state_dict().items():
            value += 0.1 * torch.rand(value.shape, generator=generator)
            if name.endswith("alpha_TC"):
                value.copy_(torch.rand(value.shape, generator=generator) - close)
    return decoder.double().eval()


def pruned(decoder: Interrogate) -> Interrogate:
    tensors = {f"{name}.weight": value for name, value in decoder.state_dict().items()}
    open_LTC = open_gates(tensors)
    smaller = decoder_of(configuration("interrogate", gates=to_gates(open_LTC))).double().eval()
    own = without_units(tensors, open_LTC)
    smaller.load_state_dict({name.removesuffix(".weight"): value for name, value in own.items()})
    return smaller


def test_a_layer_is_its_equation_channel_by_channel():
    torch.manual_seed(0)
    layer = GatedLayer(C, TASKS, None, is_last=False).double().eval()
    layer.alpha_TC.data = torch.tensor([[1.0, -1, 1, -1, 0, -3], [-1.0] * C, [1.0] * C], dtype=torch.float64)
    layer.beta_TC.data.normal_()
    u_T, s = list(torch.randn(TASKS, 2, C, 4, 5).double()), torch.randn(2, C, 4, 5).double()
    taken_T, following = layer(u_T, s)
    phi_T, psi = [F.gelu(block.norm(block.conv(u))) for block, u in zip(layer.own, u_T)], layer.common(s)
    for channel in range(C):
        whose = [phi_T[0] if channel in (0, 2, 4) else psi, psi, phi_T[2]]
        for taken, expected in zip(taken_T, whose):
            torch.testing.assert_close(taken[:, channel], expected[:, channel], rtol=1e-12, atol=1e-12)
        weights = [layer.beta_TC[task, channel].exp() for task in range(TASKS)]
        mean = sum(w * taken[:, channel] for w, taken in zip(weights, taken_T)) / sum(weights)
        torch.testing.assert_close(following[:, channel], mean, rtol=1e-12, atol=1e-12)


def test_a_gate_has_the_gradient_of_its_sigmoid():
    layer = GatedLayer(1, 1, None, is_last=True)
    layer.alpha_TC.data.fill_(-0.7)
    assert layer.gates().item() == 0
    layer.gates().sum().backward()
    share = torch.tensor(-0.7).sigmoid()
    torch.testing.assert_close(layer.alpha_TC.grad.flatten(), (share * (1 - share))[None])


@pytest.mark.parametrize(("alpha", "own_share", "loss"), [(0.0, 0.3, 0.2), (0.0, 0.5, 0.0), (-20.0, 0.1, 0.0)])
def test_the_loss_asks_for_sharing_until_the_share_is_reached(alpha, own_share, loss):
    decoder = tiny_decoder("interrogate", own_share=own_share, gate_weight=3.0)
    for layer in decoder.layers:
        layer.alpha_TC.data.fill_(alpha)
    ((weight, found),) = decoder.auxiliary(decoder(levels())).losses.values()
    assert weight == 3.0 and found.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("close", [0.0, 0.3, 0.7, 1.0])
def test_a_pruned_model_answers_as_the_gated_one(close):
    """From all gates open to none: also where a task has no block left, or the shared network none."""
    decoder = scattered(tiny_decoder("interrogate", layers=2), close)
    smaller, level = pruned(decoder), [level.double() for level in levels()]
    for task in INFO.tasks:
        torch.testing.assert_close(
            smaller(level).predictions[task], decoder(level).predictions[task], rtol=1e-12, atol=1e-12
        )
    numbers = [sum(p.numel() for p in model.parameters()) for model in (smaller, decoder)]
    assert numbers[0] < numbers[1]


def test_gates_in_hexadecimal_read_back():
    open_LTC = torch.rand(2, 3, 10, generator=torch.Generator().manual_seed(0)) > 0.5
    settings = InterrogateSettings(channels=10, layers=2, gates=to_gates(open_LTC))
    assert torch.equal(settings.open_LTC(3), open_LTC)
    assert to_gates(torch.tensor([[[True, False, False, False, True, True]]])) == [["8c"]]


@pytest.mark.parametrize("gates", [[["ffff"] * 4], [["ffff"] * 3] * 2, [["fff"] * 4] * 2, [["fffg"] * 4] * 2])
def test_gates_of_another_model_are_told(gates):
    with pytest.raises(UserError, match="decoder.gates of . layers: fits no decoder.layers=2 of 4 tasks"):
        configuration("interrogate", gates=gates)


@pytest.mark.slow
def test_the_verb_writes_a_run_that_answers_alike(runs, tmp_path):
    small = {"decoder__kind": "interrogate", "decoder__channels": 16, "decoder__stride": 8, "decoder__layers": 2,
             "decoder__own_share": 0.0, "decoder__gate_weight": 100, "train__lr": 0.01, "train__steps": 3}  # fmt: skip
    runs.train("run", 2, **small)
    fgmoe("prune", "--checkpoint", runs.folder("run"), "--output", tmp_path / "small")
    model, smaller = (load_model(folder)[0] for folder in (runs.folder("run"), tmp_path / "small"))
    image = torch.randn(2, 3, 112, 144, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        for task, prediction in model(image).predictions.items():
            torch.testing.assert_close(smaller(image).predictions[task], prediction, rtol=1e-4, atol=1e-5)
    further = {**small, "train__steps": 4, "decoder__gates": load_model(tmp_path / "small")[1].decoder.gates}
    resumed = runs.train("on", 1, resume=str(tmp_path / "small"), **further)
    assert resumed[-1]["step"] == 4
