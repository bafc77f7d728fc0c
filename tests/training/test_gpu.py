"""What only a GPU shows: `pytest -m gpu`. One device is enough."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.experts.kernels import find_kernel, kernel_names
from fgmoe_dist.experts.kinds.ffn import FFNWeights
from tests.runs import finish, start

pytestmark = pytest.mark.gpu


def test_a_bf16_run_trains_saves_resumes_and_scores(runs):
    settings = dict(train__precision="bf16", train__batch_size=2, train__checkpoint_every=2)
    finish(start("python", runs, "gpu", 1, train__steps=2, **settings), runs, "gpu")
    finish(start("python", runs, "gpu", 1, train__steps=4, **settings), runs, "gpu")
    assert [line["step"] for line in runs.metrics("gpu")] == [1, 2, 3, 4]
    assert (runs.folder("gpu") / "eval/4.json").is_file()


@pytest.mark.parametrize("name", kernel_names("ffn"))
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
