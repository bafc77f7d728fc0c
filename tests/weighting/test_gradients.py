"""Gradients taken task by task and put in the place of the backward pass's, by plain autograd on one process.

Legend: T tasks, I inputs, O outputs.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fgmoe_dist.weighting.gradients import FeatureGradients, TaskGradients, substituted

TASKS, PARTS = 3, 2


class Small(nn.Module):
    """Two shared layers, one of which no task's loss reaches, and a head per task, stacked."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.trunk_IO = nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.heads_TO = nn.Parameter(torch.randn(TASKS, 4, generator=generator, dtype=torch.float64))

    @property
    def shared(self) -> list[nn.Parameter]:
        return [self.trunk_IO, self.scale, self.idle]

    def losses(self, part: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """A loss per task, and an auxiliary one."""
        x_I = torch.randn(5, generator=torch.Generator().manual_seed(10 + part), dtype=torch.float64)
        hidden_O = (self.scale * x_I @ self.trunk_IO).tanh()
        return list((self.heads_TO @ hidden_O - 1).square()), 0.1 * self.trunk_IO.square().sum()


def gathered(model: Small) -> TaskGradients:
    gradients = TaskGradients(model.shared, TASKS)
    for part in range(PARTS):
        gradients.add(*model.losses(part), share=1 / PARTS)
    return gradients


def explicit(model: Small) -> torch.Tensor:
    """[T + 1, numbers] over the shared parameters, from one mean loss at a time."""
    rows = []
    for source in range(TASKS + 1):
        each = [[*losses, auxiliary][source] for losses, auxiliary in map(model.losses, range(PARTS))]
        found = torch.autograd.grad(sum(each) / PARTS, model.shared, allow_unused=True)
        here = [torch.zeros_like(p) if g is None else g for p, g in zip(model.shared, found)]
        rows.append(torch.cat([g.flatten() for g in here]))
    return torch.stack(rows)


def test_inner_products_and_sums_are_those_of_the_explicit_vectors():
    model = Small()
    gradients, rows = gathered(model), explicit(model)
    gradients.average()
    torch.testing.assert_close(gradients.gram(), rows[:TASKS] @ rows[:TASKS].T)
    combined = torch.cat([g.flatten() for g in gradients.combine([0.5, -2.0, 3.0])])
    torch.testing.assert_close(combined, torch.tensor([0.5, -2.0, 3.0, 1.0]).double() @ rows)


def test_nothing_is_left_of_the_step_before():
    model = Small()
    gradients = gathered(model)
    gradients.clear()
    for part in range(PARTS):
        gradients.add(*model.losses(part), share=1 / PARTS)
    rows = explicit(model)
    torch.testing.assert_close(gradients.gram(), rows[:TASKS] @ rows[:TASKS].T)


def test_gathering_leaves_no_gradient_and_keeps_the_graph():
    model = Small()
    losses, auxiliary = model.losses(0)
    TaskGradients(model.shared, TASKS).add(losses, auxiliary, share=1.0)
    assert all(p.grad is None for p in model.parameters())
    (sum(losses) + auxiliary).backward()
    assert model.trunk_IO.grad is not None


@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [2.0, 0.0, -0.5]])
def test_shared_parameters_get_the_combined_gradient_and_others_their_own(coefficients):
    model = Small()
    gradients = TaskGradients(model.shared, TASKS)
    for part in range(PARTS):
        losses, auxiliary = model.losses(part)
        gradients.add(losses, auxiliary, share=1 / PARTS)
        combined = gradients.combine(coefficients) if part == PARTS - 1 else None
        with substituted(model.shared, combined):
            ((sum(losses) + auxiliary) / PARTS).backward()
    plain = Small()
    for part in range(PARTS):
        losses, auxiliary = plain.losses(part)
        ((sum(losses) + auxiliary) / PARTS).backward()
    torch.testing.assert_close(model.heads_TO.grad, plain.heads_TO.grad)
    ours = torch.cat([g.flatten() for g in (model.trunk_IO.grad, model.scale.grad)])
    torch.testing.assert_close(ours, (torch.tensor([*coefficients, 1.0]).double() @ explicit(plain))[:-3])
    assert model.idle.grad is None
    if coefficients == [1.0, 1.0, 1.0]:
        torch.testing.assert_close(model.trunk_IO.grad, plain.trunk_IO.grad)


def test_hooks_are_gone_after_the_backward_pass():
    model = Small()
    with substituted(model.shared, None):
        pass
    losses, _ = model.losses(0)
    sum(losses).backward()
    assert model.trunk_IO.grad.any()


@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [2.0, 0.0, -0.5]])
def test_at_a_feature_what_is_before_it_gets_the_combination_and_what_is_behind_the_plain_sum(coefficients):
    model, plain = Small(), Small()
    x_I = torch.randn(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def losses(of: Small):
        feature_O = (of.scale * x_I @ of.trunk_IO).tanh()
        return feature_O, list((of.heads_TO @ feature_O - 1).square()), 0.1 * of.trunk_IO.square().sum()

    feature_O, losses_T, auxiliary = losses(model)
    at = FeatureGradients(feature_O, losses_T)
    # The gradient of (h . f - 1)^2 by f is 2 (h . f - 1) h.
    rows = 2 * (model.heads_TO @ feature_O - 1)[:, None] * model.heads_TO
    torch.testing.assert_close(at.gram(), (rows @ rows.T).detach())
    with at.weighed(coefficients):
        (sum(losses_T) + auxiliary).backward()
    _, plain_T, auxiliary = losses(plain)
    (sum(c * loss for c, loss in zip(coefficients, plain_T)) + auxiliary).backward()
    torch.testing.assert_close(model.trunk_IO.grad, plain.trunk_IO.grad)
    expected = torch.autograd.grad(sum(losses(plain)[1]), plain.heads_TO)[0]
    torch.testing.assert_close(model.heads_TO.grad, expected)
