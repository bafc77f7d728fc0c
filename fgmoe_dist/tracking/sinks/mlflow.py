"""Sends a run folder to an MLflow store. Rank 0 alone imports MLflow: six processes crash on a fresh sqlite file.

What goes where: `config.yaml`, parameter counts and the encoder's weights are parameters, but for what names the run or
its store, which are tags; a line of `metrics.jsonl` and an evaluation are points of curves, the latter as
`eval/<task>/<metric>` and its headlines as `score/<task>` too; pictures are series by their name; `config.yaml` and
`eval/` are artifacts too; the sets of images are inputs. What a person sees of all that first: `mlflow_page`.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Sequence

from fgmoe_dist.files import to_json
from fgmoe_dist.outputs import check_output
from fgmoe_dist.settings import flatten
from fgmoe_dist.tracking import mlflow_page
from fgmoe_dist.tracking.cursor import Cursor
from fgmoe_dist.tracking.mlflow_store import (
    BATCH_METRICS,
    BATCH_PARAMETERS,
    clean_name,
    cut,
    open_experiment,
    page_of,
    resolve_uri,
    sqlite_file,
)
from fgmoe_dist.tracking.run_folder import OWN_SETTINGS, RunFolder

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

FOLDER_TAG = "run_folder_id"  # by which a run is found again where its folder has lost the MLflow id
NOTE_TAG = "mlflow.note.content"
# What MLflow itself knows by these names, and what a run calls it.
MLFLOW_TAGS = {"mlflow.user": "user", "mlflow.source.name": "command", "mlflow.source.git.commit": "git_commit"}


def mlflow_sink(folder: RunFolder, settings: Mapping[str, Any]) -> MLflowSink | None:
    """As the settings ask; None for `tracking.uri=none`. UserError for a place that can never work."""
    tracking = settings.get("tracking", {})
    if tracking.get("uri", "") == "none":
        return None
    name, uri = settings.get("run", {}).get("name", folder.path.name), tracking.get("uri", "")
    if file := sqlite_file(uri):  # one that is asked for; beside a run it is made where that can be
        check_output(file, "tracking.uri", make_parents=True)
    return MLflowSink(folder, resolve_uri(uri, folder.path), tracking.get("experiment", "fgmoe"), name)


class MLflowSink:
    """One run in one store; see `Sink`."""

    def __init__(self, folder: RunFolder, uri: str, experiment: str, run_name: str):
        self.folder, self.uri, self.experiment, self.run_name = folder, uri, experiment, run_name
        self.name = f"MLflow at {uri}"
        self.run_id = self.experiment_id = ""
        self._client = None  # until the store has answered, and again after a failure
        self._cursor = Cursor()
        self._offset = 0  # bytes of metrics.jsonl that were sent since the store has answered
        self._sent = 0  # figures and files, by this call
        self._about: Mapping[str, Any] = {}
        self._note = ""  # as it was sent last

    def catch_up(self) -> int:
        self._sent = 0
        # Read first: a run that ends meanwhile has its last lines sent by the next call.
        about = self._about = self.folder.about()
        try:
            if self._client is None:
                self._open(about)
            self._send_metrics()
            self._send_evaluations()
            self._send_note()
            self._send_status(about)
            return self._sent
        except BaseException:
            self._client = None  # nobody knows what has arrived: the next call asks
            raise

    def where_to_look(self) -> str:
        link = mlflow_page.run_link(self.experiment_id, self.run_id) if self.run_id else ""
        return page_of(self.uri, link)

    # The run in the store.

    def _open(self, about: Mapping[str, Any]) -> None:
        self._client, self.experiment_id = open_experiment(self.uri, self.experiment)
        self._cursor, self._offset = Cursor.load(self.folder, self.uri), 0
        known, tags = self._known_ids(), about.get("tags", {})
        run = self._find(known, tags)
        if run is None:
            run = self._create(known, about)
        elif not self._cursor.is_sure or self._cursor.run_id != run.info.run_id:
            self._cursor = self._ask(run)
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        self._cursor.run_id, self._cursor.status = self.run_id, ""
        self._save()
        if self._is_home() and self.folder.mlflow_run_id != self.run_id:
            self.folder.mlflow_run_id = self.run_id
        if about.get("status") == "RUNNING" != run.info.status:
            self._client.update_run(self.run_id, status="RUNNING")
        own_tags, parameters = _described(self.folder, about)
        self._describe(run, {**tags, **own_tags}, parameters)
        self._send_inputs(run, about.get("data", {}))
        self._show_in_experiment(about.get("headlines", {}))
        self._send_file(self.folder.config_file)

    def _known_ids(self) -> list[str]:
        """What the folder says that its run is called in this store."""
        ids = (self._cursor.run_id, self._is_home() and self.folder.mlflow_run_id)
        return [run_id for run_id in dict.fromkeys(ids) if run_id]

    def _is_home(self) -> bool:
        """Whether this is the run's own store, in which `mlflow_run_id` names it. A run without one takes the first."""
        own = self.folder.settings().get("tracking", {}).get("uri", "")
        return own == "none" or resolve_uri(own, self.folder.path) == self.uri

    def _find(self, known: Sequence[str], tags: Mapping[str, str]) -> Run | None:
        from mlflow.exceptions import MlflowException

        for run_id in known:
            try:
                run = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                continue
            if run.info.lifecycle_stage != "deleted":
                return run
        if FOLDER_TAG not in tags:
            return None
        query = f"tags.{FOLDER_TAG} = '{tags[FOLDER_TAG]}'"
        return next(iter(self._client.search_runs([self.experiment_id], query, max_results=1)), None)

    def _create(self, known: Sequence[str], about: Mapping[str, Any]) -> Run:
        self._cursor, tags = Cursor(), dict(about.get("tags", {}))
        if known:
            log.warning("%s has no run %s; a new one goes on from it", self.name, known[0])
            tags["continues"] = known[0]
        started = _milliseconds(about.get("started", time.time()))
        return self._client.create_run(self.experiment_id, started, tags, self.run_name)

    def _ask(self, run: Run) -> Cursor:
        """What the store has of this run, for a folder that does not know it to the last point."""
        cursor, run_id = Cursor(), run.info.run_id
        for name in run.data.metrics:
            cursor.steps[name] = max(point.step for point in self._client.get_metric_history(run_id, name))
        for artifact in self._client.list_artifacts(run_id, "images"):  # images/<series>+step+<step>+timestamp+...
            series, _, step, *_ = Path(artifact.path).name.split("+")
            cursor.pictures[series] = max(int(step), cursor.pictures.get(series, -1))
        return cursor

    def _describe(self, run: Run, tags: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        """MLflow refuses to change a parameter; what a resumed run changed becomes a tag `resumed.<key>`."""
        from mlflow.entities import Param, RunTag

        known = run.data.params
        changed = {f"resumed.{key}": value for key, value in wanted.items() if known.get(key, value) != value}
        new_tags = [RunTag(*tag) for tag in {**tags, **changed}.items() if run.data.tags.get(tag[0]) != tag[1]]
        for batch in _batches([Param(*item) for item in wanted.items() if item[0] not in known], BATCH_PARAMETERS):
            self._client.log_batch(self.run_id, params=batch)
        for batch in _batches(new_tags, BATCH_PARAMETERS):
            self._client.log_batch(self.run_id, tags=batch)

    def _send_inputs(self, run: Run, data: Mapping[str, Mapping[str, Any]]) -> None:
        """The sets of images, once each."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        known = {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}
        inputs = [
            DatasetInput(
                Dataset(found["name"], found["digest"], "local", to_json({"uri": found["where"]}),
                        profile=to_json({"images": found["images"], "split": found["split"]})),
                [InputTag("mlflow.data.context", use)],
            )
            for use, found in data.items()
            if (found["name"], found["digest"]) not in known
        ]  # fmt: skip
        if inputs:
            self._client.log_inputs(self.run_id, inputs)

    def _show_in_experiment(self, tasks: Sequence[str]) -> None:
        """Has the experiment's view show the scores of these tasks too."""
        earlier = self._client.get_experiment(self.experiment_id).tags.get(mlflow_page.VIEW_TAG)
        wanted = mlflow_page.view(list(tasks), earlier)
        if tasks and wanted != earlier:
            self._client.set_experiment_tag(self.experiment_id, mlflow_page.VIEW_TAG, wanted)

    # What the run goes on to say.

    def _send_metrics(self) -> None:
        entries, offset = self.folder.metrics_after(self._offset)
        points = [point for entry in entries for point in self._new_points(entry.pop("step"), entry.pop("time"), entry)]
        self._send_points(points)
        self._offset = offset

    def _send_evaluations(self) -> None:
        for step, path in self.folder.evaluation_files().items():
            if self._cursor.files.get(self._name_of(path)) == _state_of(path):
                continue
            for picture in self.folder.picture_files(step):
                self._send_picture(step, picture)
            scores = self.folder.evaluation(step).items()
            values = {f"eval/{task}/{name}": value for task, found in scores for name, value in found.items()}
            values.update(mlflow_page.headline_scores(self._about.get("headlines", {}), self.folder.evaluation(step)))
            self._send_points(list(self._new_points(step, path.stat().st_mtime, values)))
            self._send_file(path)

    def _new_points(self, step: int, seconds: float, values: Mapping[str, float | None]) -> Iterator[Metric]:
        """Those that the store lacks. null stands for NaN."""
        from mlflow.entities import Metric

        for name, value in values.items():
            name = clean_name(name)
            if step > self._cursor.steps.get(name, -1):
                yield Metric(name, math.nan if value is None else float(value), _milliseconds(seconds), step)

    def _send_points(self, points: Sequence[Metric]) -> None:
        for batch in _batches(points, BATCH_METRICS):
            self._once(functools.partial(self._client.log_batch, self.run_id, metrics=batch))
            self._cursor.steps.update({point.key: point.step for point in batch})
            self._save(len(batch))

    def _send_picture(self, step: int, path: Path) -> None:
        from PIL import Image

        series = re.sub(r"[^A-Za-z0-9_\-. ]", "_", path.stem)
        if step <= self._cursor.pictures.get(series, -1):
            return
        try:
            with Image.open(path) as image:
                image.load()
        except OSError as error:
            log.warning("%s: cannot be read, and is not sent: %s", path, error)
            return
        self._once(functools.partial(self._client.log_image, self.run_id, image, key=series, step=step))
        self._cursor.pictures[series] = step
        self._save(1)

    def _send_file(self, path: Path) -> None:
        """As an artifact of the name that it has in the run folder, in place of an earlier one."""
        name, state = self._name_of(path), _state_of(path)
        if self._cursor.files.get(name) != state:
            self._client.log_artifact(self.run_id, str(path), name.rpartition("/")[0] or None)
            self._cursor.files[name] = state
            self._save(1)

    def _send_note(self) -> None:
        """Anew where it has changed; a person's own note in its place is left alone."""
        step = max(self.folder.evaluation_files(), default=None)
        scores = {} if step is None else self.folder.evaluation(step)
        wanted = mlflow_page.note(self._about, self.folder.settings(), step, scores)
        if wanted == self._note:
            return
        there = self._client.get_run(self.run_id).data.tags.get(NOTE_TAG, "")
        if not there or there == self._note or there.startswith(mlflow_page.OPENING):
            self._client.set_tag(self.run_id, NOTE_TAG, wanted)
        self._note = wanted

    def _send_status(self, about: Mapping[str, Any]) -> None:
        status = about.get("status", "RUNNING")
        if status not in ("RUNNING", self._cursor.status):
            ended = about.get("ended") or self.folder.about_file.stat().st_mtime
            self._client.set_terminated(self.run_id, status, _milliseconds(ended))
            self._cursor.status = status
            self._save()

    def _once(self, send: Callable[[], None]) -> None:
        """Sends; what would fail for ever is warned about and given up, so that it does not hold up the rest."""
        from mlflow.exceptions import MlflowException

        try:
            send()
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            log.warning("%s: given up: %s", self.name, " ".join(str(error).split())[:200])

    def _save(self, sent: int = 0) -> None:
        self._sent += sent
        self._cursor.save(self.folder, self.uri)

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()


def _described(folder: RunFolder, about: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Tags and parameters: the configuration, and what `about.json` says of the model, the encoder and the tasks."""
    settings, tags = flatten(folder.settings()), about.get("tags", {})
    described = {key: about[key] for key in ("model", "work", "encoder", "headlines") if key in about}
    values = {**{key: value for key, value in settings.items() if key not in OWN_SETTINGS}, **flatten(described)}
    named = {key: settings[key] for key in OWN_SETTINGS if settings.get(key)}
    known = {name: tags[key] for name, key in MLFLOW_TAGS.items() if key in tags}
    found = ({**named, **known}, values)
    return tuple({clean_name(key): cut(str(value)) for key, value in each.items()} for each in found)


def _state_of(path: Path) -> list[int]:
    """Another one once the file is written anew."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
