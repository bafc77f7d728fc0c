"""A weighting method at work: what of a training step has to do with it.

    weighing.begin(step)
    for each micro-batch:
        terms_T = weighing.terms(losses_T)
        with weighing.backward(terms_T, auxiliary, share, last):
            engine.backward(sum(terms_T) + auxiliary)
    weighing.finish()

Legend: T tasks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fgmoe_dist.training.weighting.base import Seen, Weighting
from fgmoe_dist.training.weighting.gradients import TaskGradients, substituted


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
        if method.needs_gradients:
            self.gradients = TaskGradients(shared, method.tasks, others if method.weighs_others else ())

    def begin(self, step: int) -> None:
        self._factors_T = list(self.method.weights(step))
        self._seen, self._sums_T = Seen(step), 0
        if self.gradients is not None:
            self.gradients.clear()

    def terms(self, losses_T: Sequence[Tensor]) -> list[Tensor]:
        """f_t w_t L_t of a micro-batch's losses; their sum is what its tasks give the total."""
        self._here_T = [base * loss for base, loss in zip(self.base_T, losses_T)]
        return [factor * loss for factor, loss in zip(self._factors_T, self._here_T)]

    @contextlib.contextmanager
    def backward(self, terms_T: Sequence[Tensor], auxiliary: Tensor | None, share: float, last: bool) -> Iterator[None]:
        """Within is the backward pass of the micro-batch, which is `share` of the step. May be a collective."""
        if self.method.needs_losses or self.method.needs_gradients:
            self._sums_T = self._sums_T + share * torch.stack(self._here_T).detach().double()
            if last:
                self._seen = Seen(self._seen.step, _mean_over_ranks(self._sums_T))
        if self.gradients is None:
            yield
            return
        self.gradients.add(terms_T, auxiliary, share)
        with substituted(self.gradients.parameters, self._combine() if last else None):
            yield

    def _combine(self) -> list[Tensor]:
        self.gradients.average()
        self._seen = Seen(self._seen.step, self._seen.losses_T, self.gradients.gram())
        coefficients_T = self.method.coefficients(self._seen)
        self._factors_T = [factor * c for factor, c in zip(self._factors_T, coefficients_T)]
        return self.gradients.combine(coefficients_T)

    def finish(self) -> dict[str, float]:
        """Lets the method learn from the step; `weight/<task>`, what the step gave each task's w_t L_t."""
        self.method.after_step(self._seen)
        if self.method.constant:
            return {}
        return {f"weight/{task}": float(f) for task, f in zip(self.method.around.tasks, self._factors_T)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kind": self.method.settings.kind, **self.method.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Of a checkpoint. Another method's, or none, means that this one starts here."""
        if state.get("kind") == self.method.settings.kind:
            self.method.load_state_dict(state)


def _mean_over_ranks(losses_T: Tensor) -> list[float]:
    if not dist.is_initialized():
        return losses_T.tolist()
    dist.all_reduce(losses_T)
    return (losses_T / dist.get_world_size()).tolist()
