"""A weighting method at work: what of a training step has to do with it.

    weighing.begin(step)
    if weighing.looks_ahead and there are several: weighing.look_ahead(losses_T, share) for each micro-batch
    for each micro-batch:
        terms_T = weighing.terms(losses_T)
        with weighing.backward(auxiliary, share, last, feature):
            engine.backward(sum(terms_T) + weighted sum of auxiliary)
    if weighing.looks_back: weighing.look_back(losses_T, share) for each micro-batch again
    weighing.finish()

Legend: T tasks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fgmoe_dist.weighting.base import Seen, Weighting
from fgmoe_dist.weighting.gradients import FeatureGradients, TaskGradients, substituted


class Weighing:
    """`base_T` multiply the losses first. Several tasks reach the parameters `shared`, one each the `others`."""

    def __init__(
        self,
        method: Weighting,
        base_T: Sequence[float],
        shared: Sequence[nn.Parameter] = (),
        others: Sequence[nn.Parameter] = (),
    ):
        self.method, self.base_T, self.gradients = method, list(base_T), None
        self.at_features = method.needs_gradients and getattr(method.settings, "at", "") == "features"
        if method.needs_gradients and not self.at_features:
            self.gradients = TaskGradients(shared, method.tasks, others if method.weighs_others else ())
        self.looks_ahead, self.looks_back = method.needs_losses_before, method.needs_losses_after
        self._needs_losses = method.needs_losses or method.needs_gradients or method.needs_losses_after

    def begin(self, step: int) -> None:
        self._factors_T = None if self.looks_ahead else list(self.method.weights(step))
        self._seen, self._sums_T, self._sums_after_T, self._sums_before_T = Seen(step), 0.0, 0.0, 0.0
        if self.gradients is not None:
            self.gradients.clear()

    def look_ahead(self, losses_T: Sequence[Tensor], share: float) -> None:
        """The losses of a micro-batch of this step, before it."""
        here_T = torch.stack([base * loss for base, loss in zip(self.base_T, losses_T)])
        self._sums_before_T = self._sums_before_T + share * here_T.detach().double()

    def terms(self, losses_T: Sequence[Tensor]) -> list[Tensor]:
        """f_t w_t L_t of a micro-batch's losses; their sum is what its tasks give the total. May be a collective."""
        self._losses_T = [base * loss for base, loss in zip(self.base_T, losses_T)]
        if self._factors_T is None:
            if not torch.is_tensor(self._sums_before_T):  # the step has no other micro-batch
                self.look_ahead(losses_T, 1.0)
            before_T = _mean_over_ranks(self._sums_before_T)
            self._factors_T = list(self.method.weights_of(self._seen.step, before_T))
        self._terms_T = [factor * loss for factor, loss in zip(self._factors_T, self._losses_T)]
        return self._terms_T

    @contextlib.contextmanager
    def backward(
        self,
        auxiliary: Collection[tuple[float, Tensor]],
        share: float,
        last: bool,
        feature: Tensor | None = None,
    ) -> Iterator[None]:
        """Within is the backward pass of the micro-batch, which is `share` of the step. May be a collective.

        `auxiliary` are the losses beside the tasks', each with its weight; `feature` is what all tasks read, needed by
        a method that works `at_features`.
        """
        if self._needs_losses:
            self._sums_T = self._sums_T + share * torch.stack(self._losses_T).detach().double()
            if last:
                self._seen = replace(self._seen, losses_T=_mean_over_ranks(self._sums_T))
        if self.at_features:
            gradients = FeatureGradients(feature, self._terms_T)
            with gradients.weighed(self._coefficients(gradients.gram())):
                yield
            return
        if self.gradients is None:
            yield
            return
        beside = sum(weight * loss for weight, loss in auxiliary) if auxiliary else None
        self.gradients.add(self._terms_T, beside, share)
        with substituted(self.gradients.parameters, self._combine() if last else None):
            yield

    def _combine(self) -> list[Tensor]:
        self.gradients.average()
        return self.gradients.combine(self._coefficients(self.gradients.gram()))

    def _coefficients(self, gram_TT: Tensor) -> Sequence[float]:
        self._seen = replace(self._seen, gram_TT=gram_TT)
        # Of gradients that are not finite nothing can be solved, and the step ends the run.
        finite = bool(gram_TT.isfinite().all())
        coefficients_T = self.method.coefficients(self._seen) if finite else [1.0] * self.method.tasks
        self._factors_T = [factor * c for factor, c in zip(self._factors_T, coefficients_T)]
        return coefficients_T

    def look_back(self, losses_T: Sequence[Tensor], share: float) -> None:
        """The losses of a micro-batch of this step, after it."""
        here_T = torch.stack([base * loss for base, loss in zip(self.base_T, losses_T)])
        self._sums_after_T = self._sums_after_T + share * here_T.detach().double()

    def finish(self) -> dict[str, float]:
        """Lets the method learn from the step. Returns `weight/<task>`, by which the step multiplied each w_t L_t."""
        if self.looks_back:
            self._seen = replace(self._seen, losses_after_T=_mean_over_ranks(self._sums_after_T))
        self.method.after_step(self._seen)
        if self.method.constant:
            return {}
        return {f"weight/{task}": float(f) for task, f in zip(self.method.around.tasks, self._factors_T)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain numbers."""
        return {"kind": self.method.settings.kind, **self.method.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint. Where that was another method's, or has none, this one starts anew."""
        if state.get("kind") == self.method.settings.kind:
            self.method.load_state_dict({key: value for key, value in state.items() if key != "kind"})


def _mean_over_ranks(losses_T: Tensor) -> list[float]:
    if not dist.is_initialized():
        return losses_T.tolist()
    dist.all_reduce(losses_T)
    return (losses_T / dist.get_world_size()).tolist()
