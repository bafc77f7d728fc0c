"""The run folder: everything MLflow shows about a run, in plain files.

    config.yaml      the resolved configuration
    about.json       status, tags, parameter counts: what a comparison needs beside configuration and scores
    metrics.jsonl    one line a logged step, `{"step": 20, "loss": 1.25, ...}`
    eval/<step>.json one file an evaluation, `{task: {metric: value}}`
    pictures/<step>/ panels drawn at that evaluation
    checkpoints/     written by `fgmoe_dist.checkpoints.checkpoint`
    mlflow_run_id    the MLflow run that this folder belongs to

Rank 0 alone writes here. Whole files are written beside and renamed, so that a reader, or a run killed
half way, sees the old file or the new one. `metrics.jsonl` grows by single appends; a line torn by a kill
can only be the last one, and is dropped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Mapping

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import plain, write_atomically, write_json

Scores = dict[str, dict[str, float]]


class RunFolder:
    """`runs/<name>/`. Constructing it touches nothing; `create` makes the folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.stop_file = self.path / "stop"
        self._metrics = self.path / "metrics.jsonl"
        self._evaluations = self.path / "eval"
        self._pictures = self.path / "pictures"
        self._about = self.path / "about.json"
        self._mlflow_run_id = self.path / "mlflow_run_id"

    def create(self, config_yaml: str, resumed_step: int | None = None) -> None:
        """Makes the folder, writes the configuration, and drops what a run resumed at `resumed_step` writes again.

        None: a fresh start, which drops every earlier record but leaves checkpoints alone.
        Raises UserError where the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.yaml", config_yaml)
            if resumed_step is None:
                self._mlflow_run_id.unlink(missing_ok=True)
                self._about.unlink(missing_ok=True)
            self._forget_after(-1 if resumed_step is None else resumed_step)
        except OSError as error:
            raise UserError(
                f"run.dir={self.path}: cannot be written ({error.strerror}); name a writable folder"
            ) from None

    def _forget_after(self, step: int) -> None:
        lines = [json.dumps(entry) + "\n" for entry in self.metrics() if entry["step"] <= step]
        if self._metrics.exists():
            write_atomically(self._metrics, "".join(lines))
        for path in [*self._evaluations.glob("*.json"), *self._pictures.glob("*")]:
            if path.stem.isdigit() and int(path.stem) > step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def drop_old_stop(self, before: float) -> None:
        """Removes a `stop` file left before this time: it was meant for an earlier run. A later one is obeyed."""
        if self.stop_file.exists() and self.stop_file.stat().st_mtime < before:
            self.stop_file.unlink(missing_ok=True)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line to `metrics.jsonl`. JSON knows no NaN and no infinity: they become null."""
        entry = {"step": int(step), **plain(dict(metrics))}
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def metrics(self) -> list[dict[str, float | None]]:
        """All lines of `metrics.jsonl`, in the order written."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").split("\n")
        # What follows the last line break is empty, or torn.
        return [json.loads(line) for line in lines[:-1] if line]

    def write_evaluation(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> Path:
        """Writes `eval/<step>.json`; returns its path."""
        return write_json(self._evaluations / f"{int(step)}.json", scores)

    def evaluations(self) -> dict[int, Scores]:
        """Every evaluation by its step, earliest first."""
        paths = [path for path in self._evaluations.glob("*.json") if path.stem.isdigit()]
        return {int(path.stem): _read_json(path) for path in sorted(paths, key=lambda path: int(path.stem))}

    def pictures(self, step: int) -> Path:
        """The folder for the pictures of this step, made if need be."""
        folder = self._pictures / str(int(step))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def update_about(self, **facts: Any) -> None:
        """Sets entries of `about.json`: `status`, `tags`, `model` (parameter counts), ..."""
        write_json(self._about, {**self.about(), **facts})

    def about(self) -> dict[str, Any]:
        """What `about.json` holds; empty before the first `update_about`."""
        return _read_json(self._about) if self._about.exists() else {}

    @property
    def mlflow_run_id(self) -> str | None:
        return self._mlflow_run_id.read_text().strip() if self._mlflow_run_id.exists() else None

    @mlflow_run_id.setter
    def mlflow_run_id(self, run_id: str) -> None:
        write_atomically(self._mlflow_run_id, run_id + "\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: is no valid JSON; remove the file or restore it") from None
