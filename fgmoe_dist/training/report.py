"""What a run says of itself: log lines, metrics, evaluation tables, pictures. Rank 0 writes, all ranks take part."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Optional

import psutil
import torch
from PIL import Image

from fgmoe_dist.evaluation.evaluate import Scores, evaluate
from fgmoe_dist.evaluation.table import print_scores
from fgmoe_dist.metrics.constant import constant_baselines
from fgmoe_dist.progress import clock
from fgmoe_dist.tasks import Task
from fgmoe_dist.tracking.mlflow_run import NoRun
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.training.trainer import StepReport, Trainer, mean_over_ranks


class Reporter:
    def __init__(self, trainer: Trainer, folder: RunFolder, tracker: NoRun):
        self.trainer, self.folder, self.tracker = trainer, folder, tracker
        self.started, self.first_step = time.monotonic(), trainer.step
        self.report: Optional[StepReport] = None  # of the latest step
        self.steps, self.seconds, self.wait_seconds = 0, 0.0, 0.0  # since the last log line
        self.counts, self.counted_from = {}, trainer.step  # since the last evaluation

    def say(self, line: str) -> None:
        if self.trainer.ranks.is_first:
            print(line, flush=True)

    def observe(self, report: StepReport) -> None:
        """Takes note of a step, logged or not."""
        self.report = report
        self.steps, self.seconds = self.steps + 1, self.seconds + report.seconds
        self.wait_seconds += report.wait_seconds
        for name, count in report.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count.double()

    def log(self) -> None:
        """One log line, one line of metrics.jsonl, one point of every curve; a collective.

        Losses are the latest step's, exactly; speed is that of all steps since the last line.
        """
        losses = mean_over_ranks(self.report.losses)
        if not self.trainer.ranks.is_first:
            return
        step, steps = self.trainer.step, self.trainer.config.train.steps
        metrics = step_metrics(self.report, losses, self.trainer)
        metrics["images_per_second"] = self.trainer.config.train.batch_size * self.steps / self.seconds
        metrics["data_wait_fraction"] = self.wait_seconds / self.seconds
        self.steps, self.seconds, self.wait_seconds = 0, 0.0, 0.0
        self.folder.append(step, metrics)
        self.tracker.log(step, metrics)
        tasks = "  ".join(f"{task.name} {losses[task.name]:.3f}" for task in self.trainer.tasks)
        pace = (time.monotonic() - self.started) / (step - self.first_step)
        self.say(
            f"step {step}/{steps}  loss {losses['total']:.4f}  {tasks}  |  {metrics['images_per_second']:.1f} images/s,"
            f" waiting for data {metrics['data_wait_fraction']:.0%}, {clock(pace * (steps - step))} left"
        )

    def evaluate(self, with_constants: bool) -> float:
        """Scores the whole validation set, records and prints it; returns a number that is higher for better runs."""
        trainer, step, first = self.trainer, self.trainer.step, self.trainer.ranks.is_first
        data = trainer.config.data
        constants = constant_baselines(trainer.tasks) if with_constants else {}
        pictures = self.folder.pictures(step)
        scores = evaluate(
            trainer.model, trainer.val_shards, trainer.eval_transform, trainer.ranks,
            workers=data.workers, max_bad_samples=data.max_bad_samples, constants=constants,
            pictures=trainer.config.train.pictures, pictures_folder=pictures,
        )  # fmt: skip
        constant_scores = {name: constant.compute() for name, constant in constants.items()}
        if first:
            self._draw_counts(pictures)
            path = self.folder.write_evaluation(step, scores)
            self.tracker.log_evaluation(step, scores)
            self.tracker.log_pictures(step, sorted(pictures.glob("*.png")))
            title = f"step {step}, {trainer.val_shards.samples} images"
            print_scores(trainer.tasks, scores, title, constant_scores)
            self.say(f"scores: {path}   pictures: {pictures}/")
        self.counts, self.counted_from = {}, step
        return run_score(trainer.tasks, scores)

    def _draw_counts(self, folder: Path) -> None:
        """What the decoder counted in the steps since the last evaluation; an evaluation alone has nothing."""
        trainer = self.trainer
        if trainer.step > self.counted_from:
            caption = f"steps {self.counted_from + 1} to {trainer.step}"
            for name, picture_HWC in trainer.model.decoder.pictures(self.counts, caption).items():
                Image.fromarray(picture_HWC).save(folder / f"{name}.png")

    def finish(self) -> None:
        if self.trainer.ranks.is_first:
            self.say(f"run folder: {self.folder.path}   checkpoint: {self.folder.checkpoints}/")
            if look := self.tracker.where_to_look():
                self.say(f"curves and pictures: {look}")


def step_metrics(report: StepReport, losses: dict[str, float], trainer: Trainer) -> dict[str, float]:
    """A line of metrics.jsonl: names are those of the run folder (README) and of MLflow."""
    metrics = {"loss": losses["total"]}
    metrics.update({f"loss/{task.name}": losses[task.name] for task in trainer.tasks})
    own = [name for name in losses if name != "total" and name not in trainer.config.tasks]
    metrics.update({name: losses[name] for name in own})
    metrics.update(grad_norm=report.grad_norm, lr=report.lr, memory_gib=_memory_gib(trainer.ranks.device))
    return metrics | trainer.model.decoder.metrics(report.counts)


def run_score(tasks: list[Task], scores: Scores) -> float:
    """Mean of the headline metrics, signed so that higher is better, to tell the best checkpoint by."""
    signs = [-1 if task.lower_is_better else 1 for task in tasks]
    values = [task.headline_scale * scores[task.name][task.headline] for task in tasks]
    return sum(sign * value for sign, value in zip(signs, values)) / len(tasks)


def _memory_gib(device: torch.device) -> float:
    """Peak of the GPU, or this process's resident memory on a CPU."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / 2**30
