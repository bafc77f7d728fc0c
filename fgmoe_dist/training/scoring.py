"""How good the model is by now: scores of the whole validation set, and one number to tell the best checkpoint by."""

from __future__ import annotations

import math
from pathlib import Path

from fgmoe_dist.evaluation.evaluate import evaluate
from fgmoe_dist.evaluation.painter import Painter
from fgmoe_dist.metrics import Scores
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.tasks import Task, baselines
from fgmoe_dist.training.trainer import Trainer


def score_validation(
    trainer: Trainer, pictures: Path, with_constants: bool, image_sums: ImageSums | None = None
) -> tuple[Scores, Scores]:
    """The model's scores, and if asked for those of the best constant predictions; a collective.

    `pictures` is the folder that panels of `train.pictures` images are drawn into; `image_sums` receives, on rank 0,
    what each image adds to the scores, if every rank gives one.
    """
    config, shards = trainer.config, trainer.val_shards
    constants = baselines(trainer.tasks) if with_constants else {}
    painter = Painter(trainer.tasks, pictures, config.train.pictures, shards.samples, trainer.ranks)
    scores = evaluate(
        trainer.model, shards, trainer.eval_transform, trainer.ranks, observers=[painter], baselines=constants,
        image_sums=image_sums, workers=config.data.workers, max_bad_samples=config.data.max_bad_samples,
    )  # fmt: skip
    return scores, {name: constant.compute() for name, constant in constants.items()}


def run_score(tasks: list[Task], scores: Scores) -> float:
    """Mean of the headline metrics, signed so that higher is better, to tell the best checkpoint by.

    Over the `scored_tasks`: a task that no validation image has a label of says nothing. NaN where there are none.
    """
    counted = scored_tasks(tasks, scores)
    signs = [-1 if task.lower_is_better else 1 for task in counted]
    values = [task.headline_scale * scores[task.name][task.headline] for task in counted]
    return sum(sign * value for sign, value in zip(signs, values)) / len(counted) if counted else math.nan


def scored_tasks(tasks: list[Task], scores: Scores) -> list[Task]:
    """Those whose headline is a number; NaN, or null in a file, is none."""
    return [task for task in tasks if math.isfinite(_or_nan(scores[task.name][task.headline]))]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
