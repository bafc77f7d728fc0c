"""The loss that evens classes' gradients: by hand, and in runs on one rank and two.

Legend: B images, H W pixels, K classes.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fgmoe_dist.tasks.class_balance import FADING, LIMIT, ClassBalance, update
from fgmoe_dist.tasks.class_map import ClassTask
from tests.runs import losses

CPU = torch.device("cpu")


def task(strength: float = 1.0) -> ClassTask:
    return ClassTask("semseg", ["a", "b", "c"], balance=ClassBalance(3, strength))


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    target[0, 0] = ClassTask("semseg", ["a"]).ignore
    return torch.randn(2, 3, 4, 5, generator=generator, requires_grad=True), target


def test_a_pull_is_what_the_gradient_of_cross_entropy_gives_a_class_of_its_own_pixels():
    balanced, (logits, target) = task(), drawn()
    balanced.loss(logits, target)
    update([balanced.balance], CPU)
    for name in range(3):
        total = F.cross_entropy(logits, target, ignore_index=balanced.ignore, reduction="sum")
        (gradient,) = torch.autograd.grad(total, logits)
        pull = -gradient[:, name][target == name].sum()
        assert balanced.balance.pull_K[name].item() == pytest.approx(pull.item(), rel=1e-5)


def test_balanced_classes_and_a_first_step_are_plain_cross_entropy():
    balanced, (logits, target) = task(), drawn()
    plain = F.cross_entropy(logits, target, ignore_index=balanced.ignore)
    torch.testing.assert_close(balanced.loss(logits, target), plain)
    balanced.balance.restore([7.0, 7.0, 7.0])
    torch.testing.assert_close(balanced.loss(logits, target), plain)


@pytest.mark.parametrize(("strength", "weights"), [(1.0, [2.0, 0.5, 1.0]), (0.5, [2**0.5, 0.5**0.5, 1.0])])
def test_weights_by_hand(strength, weights):
    balanced, (logits, target) = task(strength), drawn()
    balanced.balance.restore([2.0, 8.0, 4.0 - 2.0])
    balanced.balance.pull_K = torch.tensor([2.0, 8.0, 2.0]).double()  # their mean is 4
    found = balanced.balance.weights()
    assert found[:2].tolist() == pytest.approx(weights[:2])
    weight = found[target.clamp(max=2)] * (target != balanced.ignore)
    each = F.cross_entropy(logits, target, ignore_index=balanced.ignore, reduction="none")
    torch.testing.assert_close(balanced.loss(logits, target), (weight * each).sum() / weight.sum())


def test_a_class_never_seen_has_the_weight_1_and_no_weight_is_beyond_the_limit():
    balance = ClassBalance(3, 1.0)
    balance.restore([1e6, 1.0, 0.0])
    assert balance.weights().tolist() == pytest.approx([0.5, LIMIT, 1.0], rel=1e-4)


def test_what_was_counted_fades_and_nothing_is_noted_without_gradients():
    balanced, (logits, target) = task(), drawn()
    balanced.balance.restore([1.0, 2.0, 3.0])
    balanced.loss(logits.detach(), target)
    update([balanced.balance], CPU)
    assert balanced.balance.state() == pytest.approx([FADING, 2 * FADING, 3 * FADING])


def test_without_a_labelled_pixel_the_loss_is_0():
    balanced, (logits, target) = task(), drawn()
    loss = balanced.loss(logits, torch.full_like(target, balanced.ignore))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.slow
def test_two_ranks_count_as_one_and_a_resumed_run_goes_on(runs):
    small = {"tasks": "[semseg]", "train__class_balance": 1.0, "train__steps": 4, "train__checkpoint_every": 2}
    one = runs.train("one", 1, train__micro_batch_size=4, **small)
    two = runs.train("two", 2, train__micro_batch_size=2, **small)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    plain = runs.train("plain", 1, train__micro_batch_size=4, **{**small, "train__class_balance": 0})
    assert losses(plain)[0] == pytest.approx(losses(one)[0], rel=1e-6) and losses(plain)[3] != losses(one)[3]
    on = runs.train("on", 1, resume=str(runs.folder("one") / "checkpoints/step-00000002"),
                    train__micro_batch_size=4, **small)  # fmt: skip
    assert losses(on) == losses(one, after=2)
