"""Each method against its closed form, or against its paper's algorithm on explicit vectors."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgmoe_dist.weighting import WEIGHTING, create_weighting
from fgmoe_dist.weighting.base import Around, Seen, Weighting
from fgmoe_dist.weighting.pcgrad import surgery

TASKS = ("semseg", "depth", "normals")
LOSSES = [[2.0, 0.3, 7.0], [1.5, 0.4, 6.0], [1.2, 0.2, 6.5], [1.1, 0.1, 5.0], [1.0, 0.1, 4.0], [0.5, 0.2, 4.5]]


def method(kind: str, epoch_steps: int = 2, seed: int = 5, **settings) -> Weighting:
    around = Around(TASKS, epoch_steps, seed)
    return create_weighting(WEIGHTING[kind].Settings(**settings), around)


def seen(step: int, losses_T) -> Seen:
    gram_TT = torch.tensor([[2.0, -1.0, -0.5], [-1.0, 3.0, -0.1], [-0.5, -0.1, 0.4]], dtype=torch.float64)
    return Seen(step, losses_T, gram_TT)


def test_fixed_is_always_one():
    fixed = method("fixed")
    fixed.after_step(seen(0, LOSSES[0]))
    assert fixed.weights(1) == [1.0, 1.0, 1.0]
    assert not fixed.needs_losses
    assert not fixed.needs_gradients


def test_uncertainty_starts_as_libmtl_does():
    assert method("uncertainty").weights(0) == pytest.approx([0.5 * math.exp(0.5)] * 3)


def test_uncertainty_comes_to_rest_where_the_variance_is_the_loss():
    uncertainty, losses = method("uncertainty", lr=0.01), [0.2, 1.0, 9.0]
    for step in range(3000):
        uncertainty.after_step(seen(step, losses))
    assert np.exp(uncertainty.s_T) == pytest.approx(losses, rel=1e-4)
    assert uncertainty.weights(3000) == pytest.approx([1 / (2 * loss) for loss in losses], rel=1e-4)


def test_uncertainty_learns_as_torchs_adam_on_the_written_objective():
    uncertainty = method("uncertainty", lr=0.02)
    s_T = torch.full((3,), -0.5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s_T], lr=0.02)
    for step in range(50):
        losses = LOSSES[step % len(LOSSES)]
        uncertainty.after_step(seen(step, losses))
        adam.zero_grad()
        (torch.tensor(losses, dtype=torch.float64) / (2 * s_T.exp()) + s_T / 2).sum().backward()
        adam.step()
        assert uncertainty.s_T == pytest.approx(s_T.tolist(), rel=1e-10)


def test_dwa_by_hand():
    dwa, factors = method("dwa", epoch_steps=2), []
    for step, losses in enumerate(LOSSES):
        factors.append(dwa.weights(step))
        dwa.after_step(seen(step, losses))
    assert factors[:4] == [[1.0, 1.0, 1.0]] * 4
    # Means of the epochs: (1.75, 0.35, 6.5), (1.15, 0.15, 5.75); their ratios to the power of e, by half.
    powers = [math.exp(1.15 / 1.75 / 2), math.exp(0.15 / 0.35 / 2), math.exp(5.75 / 6.5 / 2)]
    assert factors[4] == factors[5] == pytest.approx([3 * power / sum(powers) for power in powers])
    powers = [math.exp(0.75 / 1.15 / 2), math.exp(0.15 / 0.15 / 2), math.exp(4.25 / 5.75 / 2)]
    assert dwa.weights(6) == pytest.approx([3 * power / sum(powers) for power in powers])


def test_dwa_of_losses_that_fall_alike_is_equal_weights():
    dwa = method("dwa", every=1)
    for step, factor in enumerate((1.0, 0.5, 0.25)):
        dwa.after_step(seen(step, [factor * loss for loss in LOSSES[0]]))
        assert dwa.weights(step + 1) == pytest.approx([1.0, 1.0, 1.0])


def test_dwa_takes_a_task_without_labels():
    dwa = method("dwa", every=1)
    for step in range(3):
        dwa.after_step(seen(step, [0.0, 1.0, 1.0]))
    assert dwa.weights(3) == pytest.approx([1.0, 1.0, 1.0])


def paper(gradients_TP: np.ndarray, orders: list[list[int]]) -> np.ndarray:
    """Algorithm 1 of arXiv 2001.06782 on the vectors themselves: the sum of the changed gradients."""
    changed = gradients_TP.copy()
    for i, order in enumerate(orders):
        for j in order:
            dot = changed[i] @ gradients_TP[j]
            if dot < 0:
                changed[i] = changed[i] - dot / (gradients_TP[j] @ gradients_TP[j]) * gradients_TP[j]
    return changed.sum(0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8))
def test_surgery_is_the_papers_algorithm(seed, tasks, numbers):
    vectors = np.random.default_rng(seed).normal(size=(tasks, numbers))
    draw = random.Random(seed)
    orders = [draw.sample([j for j in range(tasks) if j != i], tasks - 1) for i in range(tasks)]
    coefficients = surgery(torch.from_numpy(vectors @ vectors.T), orders).numpy()
    np.testing.assert_allclose(coefficients @ vectors, paper(vectors, orders), rtol=1e-6, atol=1e-6)


def test_two_tasks_in_conflict_each_lose_their_part_along_the_other():
    first, second = np.array([1.0, 0.0]), np.array([-2.0, 1.0])  # dot -2, squares 1 and 5
    vectors = np.stack([first, second])
    coefficients = surgery(torch.from_numpy(vectors @ vectors.T), [[1], [0]])
    assert coefficients.tolist() == pytest.approx([1 + 2 / 1, 1 + 2 / 5])
    # g1 + 2/5 g2 = (1/5, 2/5) is at a right angle to g2, and g2 + 2 g1 = (0, 1) to g1.
    assert coefficients.numpy() @ vectors == pytest.approx([1 / 5 + 0, 2 / 5 + 1])


def test_without_conflict_gradients_are_added_up():
    vectors = np.random.default_rng(0).uniform(size=(4, 7))
    others = [[j for j in range(4) if j != i] for i in range(4)]
    assert surgery(torch.from_numpy(vectors @ vectors.T), others).tolist() == [1.0] * 4


def test_a_task_without_gradient_takes_no_part_in_surgery():
    vectors = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    coefficients = surgery(torch.from_numpy(vectors @ vectors.T), [[1, 2], [0, 2], [1, 0]])
    assert coefficients.numpy() @ vectors == pytest.approx([0.5, 1.5])


def test_the_order_of_surgery_depends_on_seed_and_step_alone():
    def drawn(seed: int) -> list[list[float]]:
        pcgrad = method("pcgrad", seed=seed)
        return [pcgrad.coefficients(seen(step, ())) for step in range(12)]

    assert drawn(5) == drawn(5)
    assert len({tuple(c) for c in drawn(5)}) > 1
    assert drawn(5) != drawn(6)
    later = method("pcgrad")
    assert later.coefficients(seen(7, ())) == drawn(5)[7]


@pytest.mark.parametrize("kind", WEIGHTING)
@pytest.mark.parametrize("at", range(len(LOSSES)))
def test_a_resumed_method_goes_on_as_the_unbroken_one(kind, at):
    unbroken = method(kind)
    resumed = None
    for step, losses in enumerate(LOSSES):
        if step == at:
            state = json.loads(json.dumps(unbroken.state_dict()))
            resumed = method(kind)
            resumed.load_state_dict(state)
        for each in filter(None, (unbroken, resumed)):
            each.after_step(seen(step, losses))
    assert resumed.weights(len(LOSSES)) == unbroken.weights(len(LOSSES))
    assert resumed.state_dict() == unbroken.state_dict()
    assert resumed.coefficients(seen(9, LOSSES[0])) == unbroken.coefficients(seen(9, LOSSES[0]))
