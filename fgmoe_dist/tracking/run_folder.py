"""The run folder: everything that is known of a run, in plain files. MLflow and other stores are copies of it.

    config.yaml        the resolved configuration
    about.json         status, tags, parameter counts, the encoder's weights, the process: what no other file says
    metrics.jsonl      one line per logged step, `{"step": 20, "loss": 1.25, ..., "time": 1760000000.25}`
    eval/<step>.json   one file per evaluation, `{task: {metric: value}}`
    eval/<step>.npz    of the last one, what each image adds to its scores, see `metrics.image_sums`
    pictures/<step>/   drawn at that evaluation; all of them are there once `eval/<step>.json` is
    checkpoints/       written by `fgmoe_dist.checkpoints.checkpoint`
    mlflow_run_id      the MLflow run that this folder belongs to
    mlflow_cursor.json how much of all this which MLflow store has, see `cursor`
    .fgmoe             says that the folder is a run's: nothing is written into any other (`fgmoe_dist.outputs`)

Rank 0 alone writes here, save for pictures, each of which one rank draws. Whole files are written beside and renamed,
so that a reader, or a run killed half way, sees the old file or the new one. `metrics.jsonl` grows by single appends; a
line torn by a kill can only be the last one, and is dropped.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, Callable, Mapping

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import append_line, to_json, write_atomically, write_json
from fgmoe_dist.metrics import Scores
from fgmoe_dist.outputs import RUN, check_output, claim
from fgmoe_dist.yaml_files import read_yaml

# Settings that every run has its own value of; they say nothing of what is compared.
OWN_SETTINGS = ("run.name", "run.dir", "tracking.sinks", "tracking.uri", "tracking.experiment")


class RunFolder:
    """`runs/<name>/`. Constructing it touches nothing; `create` makes the folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config_file = self.path / "config.yaml"
        self.about_file = self.path / "about.json"
        self.stop_file = self.path / "stop"
        self.cursor_file = self.path / "mlflow_cursor.json"
        self._metrics = self.path / "metrics.jsonl"
        self._evaluations = self.path / "eval"
        self._pictures = self.path / "pictures"
        self._mlflow_run_id = self.path / "mlflow_run_id"

    def create(self, config_yaml: str, resumed_step: int | None = None) -> None:
        """Makes the folder, writes the configuration, and drops what a run resumed at `resumed_step` writes again.

        None: a fresh start, which drops every earlier record but leaves checkpoints alone.
        Raises UserError where the folder cannot be written, or holds what is no run of ours.
        """
        self.claim()
        try:
            write_atomically(self.config_file, config_yaml)
            if resumed_step is None:
                for path in (self._mlflow_run_id, self.cursor_file, self.about_file):
                    path.unlink(missing_ok=True)
            self._forget_after(-1 if resumed_step is None else resumed_step)
        except OSError as error:
            raise UserError(
                f"run.dir={self.path}: cannot be written ({error.strerror}); name a writable folder"
            ) from None

    def check(self) -> None:
        """UserError where `claim` would raise it; writes nothing."""
        check_output(self.path, "run.dir", RUN)

    def claim(self) -> None:
        """Makes the folder this run's; UserError where it holds what is no run of ours, or cannot be written."""
        claim(self.path, "run.dir", RUN)

    def _forget_after(self, step: int) -> None:
        """Removes what was written after `step`, and nothing that somebody else has laid beside it."""
        lines = [to_json(entry) + "\n" for entry in self.metrics_after(0)[0] if entry["step"] <= step]
        if self._metrics.exists():
            write_atomically(self._metrics, "".join(lines))
        for later, path in self.evaluation_files().items():
            if later > step:
                path.unlink()
        for path in self._evaluations.glob("*.npz"):  # perhaps without the scores, of a run killed between the two
            if path.stem.isdecimal() and int(path.stem) > step:
                path.unlink()
        for folder in self._pictures.glob("*"):
            if folder.name.isdecimal() and folder.is_dir() and int(folder.name) > step:
                for picture in folder.glob("*.png"):
                    picture.unlink()
                with contextlib.suppress(OSError):  # not empty: somebody else's file
                    folder.rmdir()

    def drop_old_stop(self, before: float) -> None:
        """Removes a `stop` file left before this time: it was meant for an earlier run. A later one is obeyed."""
        if self.stop_file.exists() and self.stop_file.stat().st_mtime < before:
            self.stop_file.unlink(missing_ok=True)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line to `metrics.jsonl`, with the time. JSON knows no NaN and no infinity: they become null."""
        entry = {"step": int(step), **metrics, "time": round(time.time(), 3)}
        append_line(self._metrics, to_json(entry))

    def metrics(self) -> list[dict[str, float | None]]:
        """All lines of `metrics.jsonl`, in the order written, without their time."""
        entries = self.metrics_after(0)[0]
        return [{key: value for key, value in entry.items() if key != "time"} for entry in entries]

    def metrics_after(self, offset: int) -> tuple[list[dict[str, float | None]], int]:
        """The lines of `metrics.jsonl` beyond the byte `offset`, each with its `time` in seconds since 1970, and the
        offset of what is written next. Lines of runs that did not write times yet get the file's.
        """
        if not self._metrics.exists():
            return [], 0
        try:
            written = self._metrics.stat().st_mtime
            with open(self._metrics, "rb") as file:
                file.seek(offset)
                whole = file.read()
        except OSError as error:
            raise UserError(
                f"{self._metrics}: cannot be read ({error.strerror}); restore it or leave the run out"
            ) from None
        whole = whole[: whole.rfind(b"\n") + 1]  # what follows the last line break is empty, or torn
        entries = [self._entry(line) for line in whole.splitlines() if line]
        return [{**entry, "time": entry.get("time", written)} for entry in entries], offset + len(whole)

    def _entry(self, line: bytes) -> dict[str, float | None]:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry["step"], int) and all(map(_is_number, entry.values())):
                return entry
        raise UserError(
            f"{self._metrics}: holds a line without a step, or with words ({line[:60]!r}); take it out, or the file "
            "away"
        )

    def write_evaluation(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> Path:
        """Writes `eval/<step>.json`; returns its path."""
        return write_json(self.evaluation_file(step), scores)

    def evaluations(self) -> dict[int, Scores]:
        """Every evaluation by its step, earliest first."""
        return {step: self.evaluation(step) for step in self.evaluation_files()}

    def evaluation(self, step: int) -> Scores:
        """That of one step."""
        return _read_json(self.evaluation_file(step), _are_scores)

    def evaluation_file(self, step: int) -> Path:
        return self._evaluations / f"{int(step)}.json"

    def image_sums_file(self, step: int) -> Path:
        return self.evaluation_file(step).with_suffix(".npz")

    def evaluation_files(self) -> dict[int, Path]:
        """`eval/<step>.json` by step, earliest first."""
        files = {int(path.stem): path for path in self._evaluations.glob("*.json") if path.stem.isdecimal()}
        return dict(sorted(files.items()))

    def pictures(self, step: int) -> Path:
        """The folder for the pictures of this step, made if need be."""
        folder = self._pictures / str(int(step))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def picture_files(self, step: int) -> list[Path]:
        """The pictures of this step, by name."""
        return sorted((self._pictures / str(int(step))).glob("*.png"))

    def update_about(self, **facts: Any) -> None:
        """Sets entries of `about.json`: `status`, `tags`, `model` (parameter counts), ..."""
        write_json(self.about_file, {**self.about(), **facts})

    def about(self) -> dict[str, Any]:
        """What `about.json` holds; empty before the first `update_about`."""
        return _read_json(self.about_file, _is_about) if self.about_file.exists() else {}

    def settings(self) -> dict[str, Any]:
        """What `config.yaml` holds, nested. UserError where it cannot be read, or is no configuration."""
        try:
            settings = read_yaml(self.config_file)
            settings = {} if settings is None else settings
        except UserError:
            settings = None
        if not isinstance(settings, dict):
            raise UserError(f"{self.config_file}: cannot be read; restore it or leave the run out")
        for section in ("run", "tracking"):  # what is read of it here
            if not isinstance(settings.get(section, {}), dict):
                raise UserError(f"{self.config_file}: its {section} is no section; restore it or leave the run out")
        return settings

    @property
    def mlflow_run_id(self) -> str | None:
        return self._mlflow_run_id.read_text().strip() if self._mlflow_run_id.exists() else None

    @mlflow_run_id.setter
    def mlflow_run_id(self, run_id: str) -> None:
        write_atomically(self._mlflow_run_id, run_id + "\n")


def runs_in(path: Path) -> list[RunFolder]:
    """The run folder `path`, or those that lie in it. UserError where there are none."""
    found = [RunFolder(each) for each in (path, *sorted(path.glob("*"))) if (each / "config.yaml").is_file()]
    if not found:
        raise UserError(f"{path}: is no run folder and holds none; name one with config.yaml in it")
    return found[:1] if found[0].path == path else found


def _read_json(path: Path, is_right: Callable[[dict], bool] = lambda value: True) -> dict[str, Any]:
    """A mapping in a file; UserError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: is no valid JSON; remove the file or restore it") from None
    if not isinstance(value, dict) or not is_right(value):
        raise UserError(f"{path}: is not what a run writes there; remove the file or restore it")
    return value


def _are_scores(value: dict) -> bool:
    return all(isinstance(metrics, dict) and all(map(_is_number, metrics.values())) for metrics in value.values())


def _is_about(value: dict) -> bool:
    """What a comparison reads of it, as `Recorder.start` writes it; other facts are left to who asks for them."""
    return (
        isinstance(value.get("status", ""), str)
        and all(isinstance(tag, str) for tag in _mapping(value, "tags").values())
        and all(map(_is_number, _mapping(value, "model").values()))
        and all(
            isinstance(headline, dict)
            and isinstance(headline.get("metric"), str)
            and isinstance(headline.get("lower_is_better"), bool)
            for headline in _mapping(value, "headlines").values()
        )
    )


def _mapping(value: dict, key: str) -> dict[str, Any]:
    """The mapping under a key; where something else is there, one that no check takes."""
    found = value.get(key, {})
    return found if isinstance(found, dict) else {"": ()}


def _is_number(value: Any) -> bool:
    """JSON's null stands for NaN and infinity."""
    return value is None or isinstance(value, (int, float))
