"""Each method against its closed form, or against its paper's algorithm on explicit vectors."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgmoe_dist.weighting import WEIGHTING, create_weighting
from fgmoe_dist.weighting.adam import Adam
from fgmoe_dist.weighting.base import Around, Seen, Weighting
from fgmoe_dist.weighting.cagrad import averse
from fgmoe_dist.weighting.conflict_routing import routed
from fgmoe_dist.weighting.imtl import impartial
from fgmoe_dist.weighting.mgda import shortest
from fgmoe_dist.weighting.nash import bargain, solve
from fgmoe_dist.weighting.pcgrad import surgery
from fgmoe_dist.weighting.weighing import Weighing

TASKS = ("semseg", "depth", "normals")
LOSSES = [[2.0, 0.3, 7.0], [1.5, 0.4, 6.0], [1.2, 0.2, 6.5], [1.1, 0.1, 5.0], [1.0, 0.1, 4.0], [0.5, 0.2, 4.5]]


def method(kind: str, epoch_steps: int = 2, seed: int = 5, **settings) -> Weighting:
    around = Around(TASKS, epoch_steps, seed)
    return create_weighting(WEIGHTING[kind].Settings(**settings), around)


def seen(step: int, losses_T) -> Seen:
    gram_TT = torch.tensor([[2.0, -1.0, -0.5], [-1.0, 3.0, -0.1], [-0.5, -0.1, 0.4]], dtype=torch.float64)
    return Seen(step, losses_T, gram_TT, [0.9 * loss for loss in losses_T])


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


def test_rlw_draws_the_same_for_a_step_whoever_asks():
    rlw = method("rlw")
    factors = [rlw.weights(step) for step in range(4000)]
    assert method("rlw").weights(7) == factors[7] != method("rlw", seed=6).weights(7)
    assert all(min(f_T) > 0 and sum(f_T) == pytest.approx(3) for f_T in factors)
    assert np.mean(factors, axis=0) == pytest.approx([1, 1, 1], abs=0.05)


def gradients(tasks: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tasks, size)) * np.logspace(-2, 2, tasks)[:, None]


@pytest.mark.parametrize("seed", range(20))
def test_mgda_of_two_tasks_is_the_closed_form(seed):
    g1, g2 = gradients(2, 3, seed) + np.array([0.3, 0.0, 0.0])
    first = np.clip((g2 - g1) @ g2 / ((g1 - g2) @ (g1 - g2)), 0, 1)
    rows = np.stack([g1, g2])
    assert shortest(rows @ rows.T) == pytest.approx([first, 1 - first], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mgda_descends_on_every_task(seed):
    g_TP = gradients(4, 30, seed)
    d_P = shortest(g_TP @ g_TP.T) @ g_TP
    assert (g_TP @ d_P >= d_P @ d_P * (1 - 1e-6)).all()  # what the shortest has in common with each


@pytest.mark.parametrize("seed", range(5))
def test_cagrad_does_most_for_the_task_that_gains_least(seed):
    g_TP, c = gradients(3, 5, seed), 0.5
    mean_P = g_TP.mean(0)
    d_P = averse(g_TP @ g_TP.T, c) @ g_TP * (1 + c**2)
    radius = c * np.linalg.norm(mean_P)
    assert np.linalg.norm(d_P - mean_P) == pytest.approx(radius, rel=1e-6)
    away = np.random.default_rng(seed).normal(size=(5000, 5))
    others = mean_P + radius * away / np.linalg.norm(away, axis=1, keepdims=True)
    assert (g_TP @ d_P).min() >= (others @ g_TP.T).min(1).max() - 1e-3 * np.linalg.norm(mean_P)


def test_cagrad_without_a_radius_is_the_mean():
    g_TP = gradients(3, 5, 0)
    assert averse(g_TP @ g_TP.T, 0.0) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_imtl_projects_alike_onto_every_gradient(tasks):
    g_TP = gradients(tasks, 12, tasks)
    c_T, lengths_T = impartial(g_TP @ g_TP.T), np.linalg.norm(g_TP, axis=1)
    along_T = g_TP @ (c_T @ g_TP) / lengths_T
    assert c_T.sum() == pytest.approx(1) and along_T == pytest.approx(np.full(tasks, along_T[0]), rel=1e-4)
    if tasks == 2:
        assert c_T == pytest.approx(lengths_T[::-1] / lengths_T.sum())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay):
    values = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    ours, theirs = Adam(values.tolist(), 0.03, decay), torch.optim.Adam([values], lr=0.03, weight_decay=decay)
    for step in range(20):
        values.grad = torch.tensor([math.sin(step), 5.0, -1e-3 * step], dtype=torch.float64)
        ours.step(values.grad.tolist())
        theirs.step()
        assert ours.values == pytest.approx(values.tolist(), rel=1e-12)


def test_gradnorm_learns_as_torch_differentiates_the_papers_objective():
    gradnorm, norms_T = method("gradnorm", alpha=1.5, lr=0.05), torch.tensor([4.0, 0.5, 1.0], dtype=torch.float64)
    p_T = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p_T], lr=0.05)
    for step, losses in enumerate(LOSSES):
        factors_T = torch.tensor(gradnorm.weights(step), dtype=torch.float64)
        gram_TT = torch.diag((factors_T * norms_T) ** 2)  # of the weighed losses
        gradnorm.after_step(Seen(step, losses, gram_TT))
        adam.zero_grad()
        mine_T = 3 * p_T.softmax(0) * norms_T
        paces_T = torch.tensor(losses, dtype=torch.float64) / torch.tensor(LOSSES[0], dtype=torch.float64)
        target_T = (mine_T.mean() * (paces_T / paces_T.mean()) ** 1.5).detach()
        (mine_T - target_T).abs().sum().backward()
        adam.step()
        assert gradnorm.adam.values == pytest.approx(p_T.tolist(), rel=1e-9, abs=1e-12)
        assert sum(gradnorm.weights(step)) == pytest.approx(3)


def test_gradnorm_of_tasks_that_learn_alike_evens_their_gradients():
    gradnorm, norms_T = method("gradnorm", lr=0.02), np.array([4.0, 1.0, 2.0])
    for step in range(600):
        factors_T = np.array(gradnorm.weights(step))
        gradnorm.after_step(Seen(step, [1.0, 1.0, 1.0], torch.diag(torch.from_numpy((factors_T * norms_T) ** 2))))
    even_T = 3 * (1 / norms_T) / (1 / norms_T).sum()
    assert gradnorm.weights(600) == pytest.approx(even_T, rel=0.05)


def test_famo_by_hand():
    famo = method("famo", lr=0.1, weight_decay=0.0)
    assert famo.weights_of(0, [2.0, 0.5, 1.0]) == pytest.approx([1 / 7, 4 / 7, 2 / 7])  # 1 / L, their sum 1
    w_T = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w_T], lr=0.1)
    for step, (before, after) in enumerate(pairwise(LOSSES)):
        famo.after_step(Seen(step, before, None, after))
        adam.zero_grad()
        gains_T = torch.tensor(before).double().log() - torch.tensor(after).double().log()
        torch.autograd.backward(w_T.softmax(0), gains_T)  # the vector-Jacobian product
        adam.step()
        assert famo.adam.values == pytest.approx(w_T.tolist(), rel=1e-5)
    z_T = w_T.softmax(0)
    shares_T = z_T / torch.tensor([3.0, 1.0, 2.0]).double()
    assert famo.weights_of(9, [3.0, 1.0, 2.0]) == pytest.approx((shares_T / shares_T.sum()).tolist(), rel=1e-5)


def test_famo_of_equal_losses_that_fall_alike_is_equal_weights():
    famo = method("famo")
    for step in range(5):
        famo.after_step(Seen(step, [1.0, 1.0, 1.0], None, [0.5, 0.5, 0.5]))
    assert famo.weights_of(5, [2.0, 2.0, 2.0]) == pytest.approx([1 / 3] * 3)
    assert np.isfinite(famo.weights_of(5, [0.0, 2.0, 2.0])).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_nash_bargains_to_its_equation(seed, tasks):
    g_TP = np.random.default_rng(seed).normal(size=(tasks, tasks + 2)) * np.logspace(-2, 2, tasks)[:, None]
    gram_TT = g_TP @ g_TP.T
    alpha_T = solve(gram_TT / np.linalg.norm(gram_TT))
    assert (alpha_T > 0).all()
    assert gram_TT / np.linalg.norm(gram_TT) @ alpha_T * alpha_T == pytest.approx(np.ones(tasks), rel=1e-9)


def test_nash_in_closed_form():
    assert solve(np.array([[4.0]])) == pytest.approx([1 / 2])  # T = 1: 1 / ||g||
    assert solve(np.diag([4.0, 25.0])) == pytest.approx([1 / 2, 1 / 5])  # at right angles
    assert solve(np.array([[2.0, 1.0], [1.0, 2.0]])) == pytest.approx([3**-0.5] * 2)  # 2 a + a = 1 / a
    assert bargain(np.diag([4.0, 25.0]), rescale=True) == pytest.approx([10 / 7, 4 / 7])
    assert bargain(np.diag([4.0, 0.0]), rescale=True) == pytest.approx([1, 1])
    assert np.isfinite(solve(np.array([[1.0, -1.0], [-1.0, 1.0]]) + 1e-9 * np.eye(2))).all()  # full conflict


def test_nash_keeps_its_weights_between_bargains():
    nash = method("nash", every=3)
    first = nash.coefficients(seen(0, LOSSES[0]))
    other = Seen(1, LOSSES[0], torch.diag(torch.tensor([1.0, 2.0, 3.0]).double()))
    assert nash.coefficients(other) == first != nash.coefficients(Seen(3, LOSSES[0], other.gram_TT))


def test_conflict_routing_in_closed_form():
    assert routed(np.diag([4.0, 9.0, 1.0]), 1.0) == pytest.approx([1, 1, 1])  # nobody is in conflict
    assert routed(np.array([[4.0, -1.0], [-1.0, 9.0]]), 2.0) == pytest.approx([1, 1])  # two disagree alike
    # The third is against both, which agree: mean cosines (1 - 1) / 2, (1 - 1) / 2 and -1.
    rows = np.array([[1.0], [2.0], [-3.0]])
    powers = np.array([1.0, 1.0, math.exp(-1)])
    assert routed(rows @ rows.T, 1.0) == pytest.approx(3 * powers / powers.sum())
    assert routed(rows @ rows.T, 0.0) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    "combine",
    [
        shortest,
        impartial,
        lambda gram: averse(gram, 0.5),
        lambda gram: bargain(gram, True),
        lambda gram: routed(gram, 1.0),
    ],
)
def test_tasks_without_gradients_break_nothing(combine):
    g_TP = gradients(3, 5, 1)
    g_TP[1] = 0
    assert np.isfinite(combine(g_TP @ g_TP.T)).all()
    assert np.isfinite(combine(np.zeros((3, 3)))).all()
    assert np.isfinite(combine(np.ones((3, 3)))).all()  # all the same


@pytest.mark.parametrize("kind", ["mgda", "cagrad", "imtl", "nash", "conflict_routing"])
def test_nothing_is_solved_for_gradients_that_are_not_finite(kind):
    """The step that they come from ends the run with a line of its own."""
    gram_TT = torch.full((3, 3), math.inf, dtype=torch.float64)
    gradients = SimpleNamespace(average=lambda: None, gram=lambda: gram_TT, combine=list)
    asked = SimpleNamespace(gradients=gradients, method=method(kind), _seen=Seen(0), _factors_T=[1.0] * 3)
    asked._coefficients = lambda gram_TT: Weighing._coefficients(asked, gram_TT)
    assert Weighing._combine(asked) == [1.0, 1.0, 1.0]
