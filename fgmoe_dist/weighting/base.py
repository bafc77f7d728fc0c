"""What a weighting method is: how much each task's loss counts, or how the tasks' gradients become one.

A method is one file here (or a plug-in's) and one line in `WEIGHTING`: its settings, chosen by `train.weighting.kind`,
and its class. `train.loss_weights` multiply the losses first; all that a method sees is of these products, w_t L_t.

A step goes through a method like this:

    weights         factors f_t of the losses, known before the step; sum_t f_t w_t L_t is what is differentiated.
                    With `needs_losses_before` they may depend on the losses of the step's own batch
    coefficients    with `needs_gradients`: c_t, so that the parameters which several tasks reach get sum_t c_t g_t,
                    g_t being the gradient of f_t w_t L_t there; parameters of one task only keep their own gradient,
                    unless the method `weighs_others`
    after_step      what the method learns from the step; with `needs_losses_after` also from its batch's losses now

Whatever a method sees is of the whole global batch, a mean over ranks and accumulation parts. So every rank computes
the same, and the same on any number of ranks. A method draws random numbers from (seed, step) alone.

Legend: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fgmoe_dist.settings import Section


class WeightingSettings(Section):
    """The section `train.weighting` of a configuration. A method's own derives from it and fixes `kind`."""

    kind: str


class GradientSettings(WeightingSettings):
    """Of a method with `needs_gradients` that leaves a task's own parameters alone."""

    at: Literal["parameters", "features"] = Field(
        "parameters",
        description="where gradients are taken. parameters: at those that several tasks share; features: at the one"
        " feature that all tasks read, cheaper, and what is behind it gets the plain sum",
    )


@dataclass(frozen=True)
class Around:
    """What of a run a method depends on, beside its own settings."""

    tasks: tuple[str, ...]
    epoch_steps: int  # optimiser steps that see the training set once, at least 1
    seed: int


@dataclass(frozen=True)
class Seen:
    """What a method is told of a step."""

    step: int  # counted from 0
    losses_T: Sequence[float] = ()  # w_t L_t; empty unless the method needs something
    gram_TT: Tensor | None = None  # g_s . g_t over the shared parameters, float64 on the CPU; with needs_gradients
    losses_after_T: Sequence[float] = ()  # w_t L_t of the same batch after the step; with needs_losses_after


class Weighting:
    """Equal factors, and gradients added up; a method overrides what it does otherwise."""

    Settings: ClassVar[type[WeightingSettings]]
    needs_losses: ClassVar[bool] = False  # one small exchange per step
    needs_gradients: ClassVar[bool] = False  # T + 1 backward passes to the shared parameters, and their memory
    needs_losses_before: ClassVar[bool] = False  # one more forward pass, where a step has several micro-batches
    needs_losses_after: ClassVar[bool] = False  # a second forward pass over the step's batch
    weighs_others: ClassVar[bool] = False  # c_t for a task's own parameters as well, at the same cost for each of them
    constant: ClassVar[bool] = False  # nothing to log

    def __init__(self, settings: WeightingSettings, around: Around):
        self.settings, self.around, self.tasks = settings, around, len(around.tasks)

    def weights(self, step: int) -> Sequence[float]:
        """f_T of step `step`, from the method's state alone."""
        return [1.0] * self.tasks

    def weights_of(self, step: int, losses_T: Sequence[float]) -> Sequence[float]:
        """f_T where this batch's w_t L_t have a part in them. Asked of a method with `needs_losses_before`."""
        return self.weights(step)

    def coefficients(self, seen: Seen) -> Sequence[float]:
        """c_T of this step's gradients. Asked once per step, of a method with `needs_gradients`."""
        return [1.0] * self.tasks

    def after_step(self, seen: Seen) -> None:
        """Called after the optimiser's step, unless that step was not finite and has ended the run."""

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know: numbers and strings, in lists and dictionaries; it is kept as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
