"""Runs in a real sqlite store, read back with MLflow's own client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from fgmoe_dist.tracking.recorder import Recorder
from fgmoe_dist.tracking.run_folder import RunFolder

PICTURE = np.full((6, 8, 3), 9, np.uint8)


def start(folder, settings=None, resume=False, uri="", experiment="tests", tags=None, **facts) -> Recorder:
    """A run as the trainer starts it, resumed at step 0 if at all."""
    own = {"run": {"name": folder.path.name}, "tracking": {"uri": uri, "experiment": experiment}}
    folder.create(yaml.safe_dump({**(settings or {}), **own}), resumed_step=0 if resume else None)
    return Recorder.start(folder, tags or {}, **facts)


def client(store: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")


def run_of(folder: RunFolder, store: Path):
    return client(store).get_run(folder.mlflow_run_id)


def history(store: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(store).get_metric_history(run_id, name)]


def pictures(store: Path, run_id: str) -> list[tuple[str, int]]:
    """Series and step of each picture."""
    paths = [Path(entry.path) for entry in client(store).list_artifacts(run_id, "images")]
    names = [path.name.split("+") for path in paths if path.suffix == ".png"]
    return sorted((name[0], int(name[2])) for name in names)


def names_of(store: Path, experiment: str = "tests") -> list[str]:
    """Every run of an experiment, by name."""
    known = client(store).get_experiment_by_name(experiment)
    return sorted(run.info.run_name for run in client(store).search_runs([known.experiment_id]))
