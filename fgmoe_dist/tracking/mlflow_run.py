"""One MLflow run, written by rank 0 without ever holding up or ending the training.

Calls only put work on a queue; one thread sends it. A server that fails is warned about once, its work is
kept and tried again; the run folder has everything meanwhile. Other ranks use `NoRun` and never import
MLflow, six processes of which crash on a fresh sqlite file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, Mapping
from urllib.parse import urlparse

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import plain
from fgmoe_dist.tracking.run_folder import RunFolder, Scores

log = logging.getLogger(__name__)

STATUSES = ("FINISHED", "FAILED", "KILLED")
VALUE_LIMIT = 6000  # characters of a parameter; MLflow refuses longer ones
BATCH_PARAMETERS, BATCH_METRICS = 100, 1000  # MLflow refuses longer batches
RETRY_SECONDS = 15.0
QUEUE_LIMIT = 20_000  # entries kept for a server that is away: days of log lines


class NoRun:
    """The verbs of `MLflowRun` without MLflow: for ranks above 0, and with a folder for `tracking.uri=none`.

    Either kind leaves the run's status in the folder's `about.json`.
    """

    def __init__(self, folder: RunFolder | None = None):
        self.folder = folder
        self._finished = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_evaluation(self, step: int, scores: Scores) -> None: ...

    def log_pictures(self, step: int, paths: Iterable[str | Path]) -> None: ...

    def finish(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED. Only the first call counts, so an early end may be named."""
        assert status in STATUSES, status
        if self._finished:
            return
        self._finished = True
        self._end(status)
        if self.folder is not None:
            self.folder.update_about(status=status)

    def _end(self, status: str) -> None: ...

    def where_to_look(self) -> str:
        return ""

    def __enter__(self):
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(_status_of(kind))


class MLflowRun(NoRun):
    """An MLflow run under way. `with MLflowRun.start(...) as run:` ends it with the truthful status."""

    def __init__(self, folder: RunFolder, uri: str, experiment: str, run_name: str):
        super().__init__(folder)
        self.uri, self.experiment, self.run_name = uri, experiment, run_name
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._parameters: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._resume = False
        self._client = None
        self._last_step: dict[str, int] = {}  # of each metric that the store had before this process
        self._jobs: deque[Callable[[], None]] = deque()
        self._points: deque[tuple[str, float, int, int]] = deque(maxlen=QUEUE_LIMIT)  # name, value, milliseconds, step
        self._batch: list[tuple[str, float, int, int]] = []  # taken from the queue by the thread, not sent yet
        self._logged = self._sent = 0  # points: written by the training and by the thread respectively
        self._wake, self._ending = threading.Event(), threading.Event()
        self._warned = False
        self._thread: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        folder: RunFolder,
        uri: str,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        resume: bool,
    ) -> NoRun:
        """Starts a run, or goes on with the one that `folder.mlflow_run_id` names.

        `uri`: a server, a store, empty for sqlite beside the run folder, or `none` for no tracking at all.
        `parameters`: the configuration, nested or flat; nested keys are joined by dots. What the folder's
        `about.json` says of the model goes with them, as `model.<key>`.
        A store that does not answer is warned about and tried again later. Raises UserError for a URI or an
        experiment that can never work.
        """
        folder.update_about(status="RUNNING", tags=dict(tags))
        if uri == "none":
            return NoRun(folder)
        parameters = {**parameters, "model": folder.about().get("model", {})}
        run = cls(folder, resolve_uri(uri, folder.path), experiment, run_name)
        run._parameters = {_clean_name(key): _cut(value) for key, value in flatten(parameters).items()}
        run._tags, run._resume = dict(tags), resume
        run._attempt(run._open)
        run._thread = threading.Thread(target=run._work, name="mlflow", daemon=True)
        run._thread.start()
        return run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues the values of one step; takes microseconds."""
        now = int(time.time() * 1000)
        self._points.extend((_clean_name(name), float(value), now, int(step)) for name, value in metrics.items())
        self._logged += len(metrics)
        self._wake.set()

    def log_evaluation(self, step: int, scores: Scores) -> None:
        """Queues `{task: {metric: value}}` as metrics `eval/<task>/<metric>` and as the artifact `eval/<step>.json`."""
        self.log(
            step, {f"eval/{task}/{name}": value for task, values in scores.items() for name, value in values.items()}
        )
        text = json.dumps(plain(scores), indent=2)
        self._queue(lambda: self._client.log_text(self.run_id, text, f"eval/{int(step)}.json"))

    def log_pictures(self, step: int, paths: Iterable[str | Path]) -> None:
        """Queues image files. The file's stem names the series, so the same stem at many steps makes a film."""
        for path in map(Path, paths):
            self._queue(lambda path=path: self._send_picture(int(step), path))

    def _end(self, status: str) -> None:
        self._queue(lambda: self._client.set_terminated(self.run_id, status))
        self._ending.set()
        self._wake.set()
        # A run that is being killed has a grace period of some 30 s for everything.
        self._thread.join(timeout=60 if status == "FINISHED" else 15)
        lost = self._logged - self._sent + len(self._jobs)
        if lost:
            log.warning("MLflow at %s misses %d entries of this run; %s has them all", self.uri, lost, self.folder.path)

    def where_to_look(self) -> str:
        """For a server its page of the run; for a local store the command that shows it, and the page."""
        page = f"/#/experiments/{self.experiment_id}/runs/{self.run_id}" if self.run_id else ""
        if urlparse(self.uri).scheme in ("http", "https"):
            return self.uri.rstrip("/") + page
        words = [_python(), "-m", "mlflow", "ui", "--backend-store-uri", self.uri, "--port", "5000"]
        return f"{shlex.join(words)}   then open http://127.0.0.1:5000{page}"

    # Below: the sending thread, and `start` before there is one.

    def _queue(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._wake.set()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending.is_set()  # read before sending: nothing is queued after it is set
            sent = self._attempt(self._send_all)
            if ending:
                if not sent:
                    self._attempt(self._send_all)
                return
            if not sent:
                self._ending.wait(RETRY_SECONDS)
                self._wake.set()

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
            return True
        except Exception as error:  # any trouble of the store is survived
            if isinstance(error, UserError) and self._thread is None:
                raise
            if not self._warned:
                reason = " ".join(str(error).split())[:200]
                log.warning("MLflow at %s: %s; training goes on, %s has it all", self.uri, reason, self.folder.path)
            self._warned = True
            return False

    def _open(self) -> None:
        # MLflow's own patience (120 s, 7 tries) would hold up the start of every rank.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        with _quiet_migrations(), _alone(self.uri):
            client = MlflowClient(tracking_uri=self.uri)
            self.experiment_id = _experiment_id(client, self.uri, self.experiment)
        self._client = client
        known = self._reopen() if self._resume else None
        if known is None:
            run = client.create_run(self.experiment_id, run_name=self.run_name, tags=self._tags)
            self.run_id, known = run.info.run_id, {}
            self.folder.mlflow_run_id = self.run_id
        self._send_parameters(known)
        config = self.folder.path / "config.yaml"
        if config.exists():
            client.log_artifact(self.run_id, str(config))

    def _reopen(self) -> dict[str, str] | None:
        """Goes on with the folder's run; returns the parameters it has, or None if the store has no such run."""
        from mlflow.exceptions import MlflowException

        earlier = self.folder.mlflow_run_id
        if earlier is None:
            return None
        try:
            run = self._client.get_run(earlier)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            log.warning("MLflow at %s has no run %s; a new one goes on from it", self.uri, earlier)
            self._tags["continues"] = earlier
            return None
        self.run_id, self.experiment_id = earlier, run.info.experiment_id
        self._client.update_run(earlier, status="RUNNING")
        for name, value in self._tags.items():
            self._client.set_tag(earlier, name, value)
        # The latest point of each metric: what a resumed run repeats up to there is not sent again.
        for name in run.data.metrics:
            self._last_step[name] = max(point.step for point in self._client.get_metric_history(earlier, name))
        return run.data.params

    def _send_parameters(self, known: Mapping[str, str]) -> None:
        """MLflow refuses to change a parameter; what a resumed run changed becomes a tag `resumed.<key>`."""
        from mlflow.entities import Param, RunTag

        new = [Param(key, value) for key, value in self._parameters.items() if key not in known]
        changed = {key: value for key, value in self._parameters.items() if known.get(key, value) != value}
        for begin in range(0, len(new), BATCH_PARAMETERS):
            self._client.log_batch(self.run_id, params=new[begin : begin + BATCH_PARAMETERS])
        tags = [RunTag(f"resumed.{key}", value) for key, value in changed.items()]
        for begin in range(0, len(tags), BATCH_PARAMETERS):
            self._client.log_batch(self.run_id, tags=tags[begin : begin + BATCH_PARAMETERS])

    def _send_all(self) -> None:
        """Sends everything queued. Work leaves its queue only once sent, so a failure loses nothing."""
        from mlflow.entities import Metric

        if self.run_id is None:
            self._open()
        while self._batch or self._points:
            self._fill_batch()
            fresh = [Metric(*point) for point in self._batch if point[3] > self._last_step.get(point[0], -1)]
            if fresh:
                self._once(lambda fresh=fresh: self._client.log_batch(self.run_id, metrics=fresh))
            self._sent += len(self._batch)
            self._batch = []
        while self._jobs:
            self._once(self._jobs[0])
            self._jobs.popleft()

    def _fill_batch(self) -> None:
        while len(self._batch) < BATCH_METRICS:
            try:
                self._batch.append(self._points.popleft())
            except IndexError:
                return

    def _once(self, job: Callable[[], None]) -> None:
        """Does a job; what would fail for ever is warned about and given up, so that it does not block the rest."""
        from mlflow.exceptions import MlflowException

        try:
            job()
        except (FileNotFoundError, MlflowException) as error:
            if getattr(error, "error_code", "INVALID_PARAMETER_VALUE") != "INVALID_PARAMETER_VALUE":
                raise
            log.warning("MLflow at %s: given up: %s", self.uri, " ".join(str(error).split())[:200])

    def _send_picture(self, step: int, path: Path) -> None:
        from PIL import Image

        series = re.sub(r"[^A-Za-z0-9_\-. ]", "_", path.stem)
        if self._resume and step <= self._last_picture(series):
            return
        with Image.open(path) as image:
            self._client.log_image(self.run_id, image, key=series, step=step)

    def _last_picture(self, series: str) -> int:
        """The last step at which the store has a picture of this series (its file is `<series>+step+<n>+...`)."""
        names = [Path(entry.path).name for entry in self._client.list_artifacts(self.run_id, "images")]
        return max((int(name.split("+")[2]) for name in names if name.startswith(f"{series}+step+")), default=-1)


def resolve_uri(uri: str, folder: Path) -> str:
    """`uri`, with an empty one read as the sqlite file `mlflow.db` beside the run folder and paths made absolute."""
    if not uri:
        return f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
    scheme = urlparse(uri).scheme
    if scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///")).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{path}"
    if scheme in ("http", "https", "postgresql", "mysql", "mssql", "databricks") or scheme.startswith(
        ("postgresql+", "mysql+", "mssql+")
    ):
        return uri
    raise UserError(
        f"tracking.uri={uri}: MLflow takes http(s)://host:port, sqlite:///file.db or a database URL; leave it empty "
        "for sqlite beside the run folder, or `none` for no tracking"
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 3] + "..."


def _clean_name(name: str) -> str:
    """MLflow names allow letters, digits and `_ - . space : /`, as a path without empty or dot parts."""
    parts = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).split("/")
    return "/".join(part for part in parts if part.strip(".")) or "_"


def _experiment_id(client: Any, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=_artifact_location(uri))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(f"tracking.experiment={name}: was deleted in MLflow; restore it there or name another")
    return experiment.experiment_id


def _artifact_location(uri: str) -> str | None:
    """Beside a sqlite file; None lets a server decide. MLflow's own default is the current folder."""
    if not uri.startswith("sqlite:"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").as_uri()


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Lets one process at a time create the tables of a sqlite file: two at once crash."""
    if not uri.startswith("sqlite:"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """A fresh sqlite file makes Alembic print a page of table versions."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _status_of(kind: type | None) -> str:
    """Errors are `Exception`s; what is not one (Ctrl-C, a signal, `sys.exit`) is somebody's wish."""
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


def _python() -> str:
    """This interpreter, as a user types it: relative when it lies below the current folder."""
    path, here = Path(sys.executable), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
