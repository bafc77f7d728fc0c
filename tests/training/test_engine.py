"""Several blocks under DeepSpeed's engine, with accumulation and with DeepSpeed's own layers: the losses of one process
that computes the whole batch with plain autograd and torch's own optimiser and clipping. (One block, on every layout
and kernel and against float64 loops: test_truth.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fgmoe_dist.config import build_config
from tests.ranks import run_ranks

WORLD, STEPS, TASKS, C, TOKENS = 4, 6, 3, 16, 10
EXPERTS = dict(count=4, split=2, hidden=32, top_k=3, shared=1, global_experts=2, balance_weight=0.0)


def configuration(ep_size=1, zero_stage=1, accumulation=1, **experts):
    return build_config(
        {
            "experts": {**EXPERTS, **experts},
            "train": {
                "batch_size": WORLD * accumulation, "micro_batch_size": 1, "lr": 1e-2, "optimizer": "adam",
                "weight_decay": 1e-4, "clip_norm": 0.05, "steps": STEPS,
            },
            "parallel": {"ep_size": ep_size, "zero_stage": zero_stage},
        }
    )  # fmt: skip


class Model(nn.Module):
    """Two FGMoE blocks between linear maps: replicated and expert parameters, and tasks that differ."""

    def __init__(self, config):
        super().__init__()
        from fgmoe_dist.decoders.parts.block import FGMoEBlock

        torch.manual_seed(3)
        self.first = nn.Linear(C, C)
        self.blocks = nn.ModuleList(
            FGMoEBlock(TASKS, C, config.experts, config.parallel.ep_size, block, seed=5) for block in range(2)
        )
        self.last = nn.Linear(C, 1)

    def forward(self, x_NC):
        a_NC = self.first(x_NC)
        u_TNC = torch.stack([a_NC * (t + 1) for t in range(TASKS)])
        for block in self.blocks:
            u_TNC, *_ = block(u_TNC, a_NC)
        return self.last(u_TNC)


class Plain(nn.Module):
    """A model without experts."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, 1))

    def forward(self, x_NC):
        return self.layers(x_NC)


def image(step: int, number: int):
    return torch.randn(TOKENS, C, generator=torch.Generator().manual_seed(100 * step + number))


def image_loss(model, step, number):
    return (model(image(step, number)) - number).square().mean()


def train_on_ranks(config, kind=Model):
    import torch.distributed as dist

    from fgmoe_dist.training.engines.deepspeed import create_engine

    model = kind(config)
    modules = list(model.modules())
    engine = create_engine(model, config)
    assert list(model.modules()) == modules  # what the engine was shown is gone
    accumulation = engine.accumulation
    losses, norms = [], []
    for step in range(STEPS):
        total = torch.zeros(())
        for part in range(accumulation):
            loss = image_loss(engine, step, dist.get_rank() * accumulation + part)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / accumulation
        dist.all_reduce(total)
        losses.append(total.item() / dist.get_world_size())
        norms.append(engine.grad_norm)
    return losses, norms


def train_alone(config, kind=Model):
    model = kind(config)
    train = config.train
    optimizer = torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = sum(image_loss(model, step, number) for number in range(train.batch_size)) / train.batch_size
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.slow  # test_truth.py accumulates on one layout among the quick tests
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_accumulation_trains_as_one_process_does(zero_stage):
    config = configuration(2, zero_stage, accumulation=2)
    expected_losses, expected_norms = train_alone(configuration(accumulation=2))
    assert min(expected_norms) > 0.05, "the clip must be at work"
    for losses, norms in run_ranks(WORLD, train_on_ranks, config):
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        assert norms == pytest.approx(expected_norms, rel=1e-4)


@pytest.mark.slow  # experts/test_backends.py holds one step of them against the loop
@pytest.mark.parametrize("ep_size", [1, 4])
def test_deepspeeds_layers_train_as_the_fused_one(ep_size):
    expected, _ = train_alone(configuration())
    for losses, _ in run_ranks(WORLD, train_on_ranks, configuration(ep_size, 1, backend="deepspeed")):
        assert losses == pytest.approx(expected, rel=1e-5)


def test_a_model_without_experts_trains_as_one_process_does():
    config = configuration(zero_stage=2)
    expected_losses, expected_norms = train_alone(config, Plain)
    for losses, norms in run_ranks(WORLD, train_on_ranks, config, Plain):
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        assert norms == pytest.approx(expected_norms, rel=1e-4)
