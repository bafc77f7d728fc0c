"""Delta_m, the one number that compares a multi-task model with single-task models of the same encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fgmoe_dist.errors import UserError


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], lower_is_better: Mapping[str, bool]) -> float:
    """Mean over tasks of the relative gain over the baseline, in percent; positive = better than single-task.

    Maninis et al., Attentive single-tasking of multiple tasks, CVPR 2019:  (1/T) sum_t (-1)^l_t (M_t - S_t) / S_t, l_t
    = 1 where lower is better.

    Args:
        scores: one headline metric per task (M).
        baseline: the same metric of the single-task models (S); more tasks than `scores` has are no harm.
        lower_is_better: the sign of each task's metric.

    Raises:
        UserError: no task at all, a task missing from the baseline, or a baseline that is 0 or not finite.
    """
    return mean_gain(relative_gains(scores, baseline, lower_is_better))


def mean_gain(gains: Mapping[str, float]) -> float:
    """Delta_m from its terms. UserError if there are none."""
    if not gains:
        raise UserError("delta_m has no task to average; give the scores of at least one task")
    return sum(gains.values()) / len(gains)


def relative_gains(
    scores: Mapping[str, float], baseline: Mapping[str, float], lower_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """The terms of `delta_m`: each task's relative gain in percent, positive = better."""
    gains = {}
    for task, score in scores.items():
        single = baseline.get(task)
        if single is None:
            raise UserError(f"delta_m: the baseline has no {task}; add its single-task score or leave {task} out")
        if not math.isfinite(single) or single == 0 or not math.isfinite(score):
            raise UserError(
                f"delta_m: {task} scores {score} against a baseline of {single}; both must be finite and the "
                "baseline not 0: evaluate both on a set that has this label"
            )
        gain = 100 * (score - single) / single
        gains[task] = -gain if lower_is_better[task] else gain
    return gains
