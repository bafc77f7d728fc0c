"""Which differences between runs may be believed: a paired bootstrap over the images that both were scored on.

Reads what each image added to a run's scores (`eval/<step>.npz`); the labels and the predictions are needed no more.
Shapes: D draws of the images, of which the first is the set itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.bootstrap import DRAWS, Interval, draw_images, interval, pooled_scores
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.progress import track
from fgmoe_dist.tasks import DataSetFacts, create_tasks

GAIN = "delta_m"
CURE = "remove it, or leave the run out"


class Headline(NamedTuple):
    """The metric by which a task is compared, and its sign; None where nobody recorded it."""

    name: str
    metric: str
    lower_is_better: bool | None


def differences(
    files: Sequence[str], tasks: Sequence[Headline], baseline: int, draws: int = DRAWS
) -> dict[str, list[Interval | None]]:
    """Of every run its distance from the baseline run, by task and as `delta_m` in percent.

    Args:
        files: each run's image sums; empty where it has none.
        tasks: what is compared.
        baseline: which of the runs is the measure.

    None where a run was scored on other images, or has not all it takes; empty where that is so of the baseline.
    UserError for a file that is damaged.
    """
    if not files[baseline] or not draws:
        return {}
    base, _ = ImageSums.load(Path(files[baseline]))
    ids = sorted(base.ids)
    if not ids:
        return {}
    times_DN = np.vstack([np.ones(len(ids)), draw_images(len(ids), draws)])
    scores = [
        _scores(Path(file), ids, tasks, times_DN) if file else {} for file in track(files, "drawing the images anew")
    ]
    found = {
        task.name: [_difference(one.get(task.name), scores[baseline].get(task.name)) for one in scores]
        for task in tasks
    }  # fmt: skip
    signs = {task.name: -1 if task.lower_is_better else 1 for task in tasks if task.lower_is_better is not None}
    return {**found, GAIN: [_gain(one, scores[baseline], signs) for one in scores]}


def _scores(file: Path, ids: Sequence[str], tasks: Sequence[Headline], times_DN: np.ndarray) -> dict[str, np.ndarray]:
    """By task its headline in every draw `[D]`, of the tasks that this run was scored on; none on other images."""
    sums, about = ImageSums.load(file)
    if sorted(sums.ids) != list(ids):
        return {}
    scores = {}
    for task in tasks:
        if task.name in sums.tasks:
            meter, rows_NS = _meter(file, task.name, about), sums.matrix(task.name, ids)
            if rows_NS.shape[1] != len(meter.state()):
                raise UserError(f"{file}: {task.name} was scored by another release; {CURE}")
            pooled = pooled_scores(meter, rows_NS, times_DN)
            if task.metric in pooled:
                scores[task.name] = pooled[task.metric]
    return scores


def _meter(file: Path, task: str, about: Mapping[str, Any]) -> Meter:
    try:
        return create_tasks([task], DataSetFacts(**about))[0].meter()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError):
        raise UserError(f"{file}: does not say what its data set is; {CURE}") from None


def _difference(mine_D: np.ndarray | None, base_D: np.ndarray | None) -> Interval | None:
    if mine_D is None or base_D is None or not np.isfinite(mine_D[0] - base_D[0]):
        return None
    return interval(float(mine_D[0] - base_D[0]), (mine_D - base_D)[1:])


def _gain(mine: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], signs: Mapping[str, int]) -> Interval | None:
    """As `metrics.delta_m.delta_m`, of every draw."""
    if not signs or not signs.keys() <= mine.keys() & base.keys():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        gains_D = np.mean([sign * 100 * (mine[name] - base[name]) / base[name] for name, sign in signs.items()], axis=0)
    return interval(float(gains_D[0]), gains_D[1:]) if np.isfinite(gains_D[0]) else None
