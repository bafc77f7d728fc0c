"""Where an MLflow store is, how one is opened without harm, and what it takes."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Iterator
from urllib.parse import urlparse

from fgmoe_dist.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

BATCH_PARAMETERS, BATCH_METRICS = 100, 1000  # MLflow refuses longer batches
VALUE_LIMIT = 6000  # and longer parameters, in characters


def resolve_uri(uri: str, folder: Path) -> str:
    """`uri`, paths made absolute; empty: MLFLOW_TRACKING_URI, or else the file `mlflow.db` beside the run folder."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
    if file := sqlite_file(uri):
        return f"sqlite:///{file.resolve()}"
    scheme = urlparse(uri).scheme
    if scheme in ("http", "https", "postgresql", "mysql", "mssql", "databricks") or scheme.startswith(
        ("postgresql+", "mysql+", "mssql+")
    ):
        return uri
    raise UserError(
        f"tracking.uri={uri}: MLflow takes http(s)://host:port, sqlite:///file.db or a database URL; leave it empty "
        "for sqlite beside the run folder, or `none` for no tracking"
    )


def sqlite_file(uri: str) -> Path | None:
    """The file of a `sqlite:///file.db`; None for any other URI."""
    name = uri.removeprefix("sqlite:///")
    return Path(name) if name.strip() and name != uri else None


def open_experiment(uri: str, name: str) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment, which is made where it is not there yet.

    UserError for an experiment that was deleted; MLflow's own errors where the store does not answer.
    """
    # MLflow's own patience (120 s, 7 tries) is longer than a run that ends may wait.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    with _quiet_migrations(), _alone(uri):
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment_id(client, uri, name)


def find_experiment(uri: str, name: str) -> tuple[MlflowClient, Experiment]:
    """A client of a store that is there, and its experiment. UserError where one cannot be read or is not there."""
    from mlflow import MlflowClient

    _check_file(uri)
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
    except Exception as error:  # of a store MLflow passes on what its driver, the network or the file system raise
        raise UserError(f"--uri {uri}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    if found is None:
        raise UserError(f"--experiment {name}: is not in {uri}; name one that is")
    return client, found


def _check_file(uri: str) -> None:
    """UserError where MLflow would ask a file for minutes that is not there, or no store."""
    path = sqlite_file(uri)
    if path is None:
        return
    if not path.is_file():
        raise UserError(f"--uri {uri}: there is no such file; name the store the runs were tracked in")
    with path.open("rb") as file:
        if file.read(16) not in (b"", b"SQLite format 3\0"):
            raise UserError(f"--uri {uri}: the file is no SQLite database; name the store the runs were tracked in")


def is_server(uri: str) -> bool:
    return urlparse(uri).scheme in ("http", "https")


def page_of(uri: str, link: str) -> str:
    """For a server its page behind `link`; for a local store the command that shows it, and the page."""
    if is_server(uri):
        return uri.rstrip("/") + link
    words = [_python(), "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", "5000"]
    return f"{shlex.join(words)}   then open http://127.0.0.1:5000{link}"


def clean_name(name: str) -> str:
    """MLflow names allow letters, digits and `_ - . space : /`, as a path without empty or dot parts."""
    parts = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).split("/")
    return "/".join(part for part in parts if part.strip(".")) or "_"


def cut(value: str) -> str:
    """As much of a parameter as MLflow takes."""
    return value if len(value) <= VALUE_LIMIT else value[: VALUE_LIMIT - 3] + "..."


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
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


def _python() -> str:
    """This interpreter, as a user types it: relative when it lies below the current folder."""
    path, here = Path(sys.executable), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
