"""Batch norm over ranks, against torch's own on the whole batch in one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fgmoe_dist.decoders.parts.batch_norm import BatchNorm
from tests.ranks import run_ranks

C, SPLIT = 3, (2, 1)  # images of each rank: unequal, so that a mean of means would be wrong


def images(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return (3 + 2 * torch.randn(sum(SPLIT), C, 4, 5, generator=generator)).double()


def train(norm: nn.Module, part: slice = slice(None)) -> list[torch.Tensor]:
    """Two batches: the answers, the gradients, and the running statistics."""
    found = []
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    for batch in (1, 2):
        x = images(batch)[part].requires_grad_()
        y = norm(x)
        (y * torch.arange(y[0].numel()).view_as(y[0]).cos()).exp().sum().backward()
        found += [y.detach(), x.grad]
    return [*found, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def train_on_rank() -> list:
    import torch.distributed as dist

    first = sum(SPLIT[: dist.get_rank()])
    return [value.numpy() for value in train(BatchNorm(C).double(), slice(first, first + SPLIT[dist.get_rank()]))]


def test_alone_it_is_torchs():
    for ours, theirs in zip(train(BatchNorm(C).double()), train(nn.BatchNorm2d(C).double())):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_several_ranks_compute_what_one_does():
    *expected, dweight, dbias, mean, variance = train(nn.BatchNorm2d(C).double())
    answers = [[torch.from_numpy(value) for value in answer] for answer in run_ranks(len(SPLIT), train_on_rank)]
    for ours, theirs in zip(zip(*(answer[:4] for answer in answers)), expected):
        torch.testing.assert_close(torch.cat(ours), theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(answer[4] for answer in answers), dweight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(answer[5] for answer in answers), dbias, rtol=1e-10, atol=1e-10)
    for answer in answers:
        torch.testing.assert_close(answer[6:], [mean, variance], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(*both) for both in zip(answers[0][6:], answers[1][6:]))  # to the bit, as buffers must be


def test_evaluation_is_an_affine_map_and_leaves_no_trace():
    ours, theirs = BatchNorm(C).double(), nn.BatchNorm2d(C).double()
    train(ours), train(theirs)
    x, before = images(3), ours.running_mean.clone()
    scale, shift = (value[:, None, None] for value in ours.eval().affine())
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x), x * scale + shift, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        ours.train()(x)  # a second look at a batch
    assert torch.equal(ours.running_mean, before)


@pytest.mark.parametrize("training", [True, False])
def test_in_bf16_the_running_statistics_stay_as_they_were(training):
    norm = BatchNorm(C).float()
    norm.running_mean.fill_(1 + 2**-20)
    norm.bfloat16().train(training)
    assert norm.weight.dtype == torch.bfloat16 and norm.running_mean.unique().tolist() == [1 + 2**-20]
    y = norm(images(1).bfloat16())
    y.float().square().sum().backward()
    assert y.dtype == norm.weight.grad.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
