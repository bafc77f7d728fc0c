"""What only a GPU shows: `pytest -m gpu`. One device is enough."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.experts.kernels import find_kernel, kernel_names
from fgmoe_dist.experts.kinds.ffn import FFNWeights
from fgmoe_dist.training.losses import task_losses
from tests.decoders.tiny import labels, levels, tiny_decoder
from tests.runs import finish, start

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fp32_is_fp32(monkeypatch):
    """torch multiplies in TF32 inside convolutions, unless told."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_a_bf16_run_trains_saves_resumes_and_scores(runs):
    settings = dict(train__precision="bf16", train__batch_size=2, train__checkpoint_every=2)
    finish(start("python", runs, "gpu", gpus="0", train__steps=2, **settings), runs, "gpu")
    finish(start("python", runs, "gpu", gpus="0", train__steps=4, **settings), runs, "gpu")
    assert [line["step"] for line in runs.metrics("gpu")] == [1, 2, 3, 4]
    assert (runs.folder("gpu") / "eval/4.json").is_file()
    assert "on cuda:0" in runs.folder("gpu.log").read_text()


def loss_and_gradients(kind, device):
    decoder = tiny_decoder(kind).to(device)
    output = decoder([level.to(device) for level in levels()])
    label = {name: value.to(device) for name, value in labels(decoder).items()}
    total = torch.stack(task_losses(decoder.tasks, output, label)[1]).sum()
    total.backward()
    gradients = {name: p.grad.cpu() for name, p in decoder.named_parameters() if p.grad is not None}
    return total.detach().cpu(), gradients


@pytest.mark.parametrize("kind", DECODERS)
def test_a_step_of_every_decoder_is_that_of_the_cpu(kind):
    (exact, exact_gradients), (loss, gradients) = (loss_and_gradients(kind, place) for place in ("cpu", "cuda"))
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == exact_gradients.keys()
    least = 1e-3 * max(gradient.norm() for gradient in exact_gradients.values())  # below, it is rounding alone
    for name, gradient in gradients.items():
        error = (gradient - exact_gradients[name]).norm() / exact_gradients[name].norm().clamp(min=least)
        assert error < 2e-2, (name, error)  # a rounding apart, a sample beside a cell's border takes another pixel


@pytest.mark.parametrize("kind", DECODERS)
def test_an_evaluation_repeats_bit_for_bit(kind):
    decoder, inputs = tiny_decoder(kind).cuda().eval(), [level.cuda() for level in levels()]
    with torch.no_grad():
        once, again = decoder(inputs).predictions, decoder(inputs).predictions
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("name", [name for name in kernel_names("ffn") if name != "cpu"])
def test_kernels_on_the_gpu_are_those_on_the_cpu(name):
    generator = torch.Generator().manual_seed(0)
    rows, channels, slots, experts, hidden = 64, 32, 2, 8, 16

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    expert_MK = torch.stack([torch.randperm(experts, generator=generator)[:slots] for _ in range(rows)])
    tensors = [rand(rows, channels), rand(rows, slots)]
    bank = [
        rand(experts, channels, hidden),
        rand(experts, hidden),
        rand(experts, hidden, channels),
        rand(experts, channels),
    ]
    on_cpu = find_kernel("ffn", "reference")(*tensors, expert_MK, FFNWeights(*bank))
    x_MC, weight_MK, *bank = [t.cuda().bfloat16() for t in (*tensors, *bank)]
    on_gpu = find_kernel("ffn", name)(x_MC, weight_MK.float(), expert_MK.cuda(), FFNWeights(*bank))
    torch.testing.assert_close(on_gpu.float().cpu(), on_cpu, rtol=0.05, atol=0.5)
