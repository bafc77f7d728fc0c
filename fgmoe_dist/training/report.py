"""What a run tells of itself: log lines for a person, and figures and pictures for the recorder.

Rank 0 says and records; all ranks call alike.
"""

from __future__ import annotations

import time

import psutil
import torch
from torch import Tensor

from fgmoe_dist.evaluation.table import print_scores
from fgmoe_dist.metrics import Scores
from fgmoe_dist.progress import clock
from fgmoe_dist.tracking.recorder import Recorder
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.training.trainer import StepReport, Trainer, mean_over_ranks


class Reporter:
    def __init__(self, trainer: Trainer, folder: RunFolder, recorder: Recorder):
        self.trainer, self.folder, self.recorder = trainer, folder, recorder
        self.started, self.first_step = time.monotonic(), trainer.step
        self.report: StepReport | None = None  # of the latest step
        self.steps, self.seconds, self.wait_seconds = 0, 0.0, 0.0  # since the last log line
        self.counts: dict[str, Tensor] = {}  # summed since the last evaluation
        self.counted_from = trainer.step

    def say(self, line: str) -> None:
        if self.trainer.ranks.is_first:
            print(line, flush=True)

    def observe(self, report: StepReport) -> None:
        """Takes note of a step, logged or not."""
        self.report = report
        self.steps, self.seconds = self.steps + 1, self.seconds + report.seconds
        self.wait_seconds += report.wait_seconds
        self.counts = {name: self.counts.get(name, 0) + count.double() for name, count in report.counts.items()}

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
        self.recorder.metrics(step, metrics)
        tasks = "  ".join(f"{task.name} {losses[task.name]:.3f}" for task in self.trainer.tasks)
        pace = (time.monotonic() - self.started) / (step - self.first_step)
        self.say(
            f"step {step}/{steps}  loss {losses['total']:.4f}  {tasks}  |  {metrics['images_per_second']:.1f} images/s,"
            f" waiting for data {metrics['data_wait_fraction']:.0%}, {clock(pace * (steps - step))} left"
        )

    def evaluated(self, scores: Scores, constant_scores: Scores) -> None:
        """Records and prints the scores of this step, whose panels are drawn; draws what the decoder counted."""
        trainer, step = self.trainer, self.trainer.step
        if trainer.ranks.is_first:
            if step > self.counted_from:  # an evaluation alone has nothing counted
                caption = f"steps {self.counted_from + 1} to {step}"
                self.recorder.pictures(step, trainer.model.decoder.pictures(self.counts, caption))
            self.recorder.evaluation(step, scores)
            print_scores(trainer.tasks, scores, f"step {step}, {trainer.val_shards.samples} images", constant_scores)
            self.say(f"scores: {self.folder.evaluation_file(step)}   pictures: {self.folder.pictures(step)}/")
        self.counts, self.counted_from = {}, step

    def say_where(self) -> None:
        """Where a person finds what the run has left."""
        self.say(f"run folder: {self.folder.path}   checkpoint: {self.folder.checkpoints}/")
        for look in self.recorder.where_to_look():
            self.say(f"curves and pictures: {look}")


def step_metrics(report: StepReport, losses: dict[str, float], trainer: Trainer) -> dict[str, float]:
    """A line of metrics.jsonl: names are those of the run folder (README) and of MLflow."""
    return {
        "loss": losses["total"],
        **{f"loss/{task.name}": losses[task.name] for task in trainer.tasks},
        **report.weights,
        **{name: loss for name, loss in losses.items() if name != "total" and name not in trainer.config.tasks},
        "grad_norm": report.grad_norm,
        "lr": report.lr,
        "memory_gib": memory_gib(trainer.ranks.device),
        **trainer.model.decoder.metrics(report.counts),
    }


def memory_gib(device: torch.device) -> float:
    """Peak of the GPU, or this process's resident memory on a CPU."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / 2**30
