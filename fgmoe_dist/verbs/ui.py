"""Open MLflow's pages on an experiment: its runs by score, their curves and pictures, and which settings differ.

Starts MLflow's server on a local store and prints the page to open; Ctrl-C ends it. For a store that is a server
already the page alone is printed.

fgmoe ui                                           the experiment `fgmoe` in runs/mlflow.db
fgmoe ui --experiment demo --port 8080
fgmoe ui --experiment nyud --uri http://tracking:5000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--experiment", default="fgmoe", metavar="NAME", help="tracking.experiment of the runs (default fgmoe)"
    )
    parser.add_argument("--uri", default="", metavar="URI", help="MLflow store or server (default runs/mlflow.db)")
    parser.add_argument("--port", type=count, default=5000, metavar="N", help="of the server started (default 5000)")


def run(args: argparse.Namespace) -> None:
    import os
    import sys

    from fgmoe_dist.tracking.mlflow_page import experiment_link
    from fgmoe_dist.tracking.mlflow_store import find_experiment, is_server, resolve_uri

    uri = resolve_uri(args.uri, Path("runs/any"))
    _, experiment = find_experiment(uri, args.experiment)
    server = uri.rstrip("/") if is_server(uri) else f"http://127.0.0.1:{args.port}"
    print(f"{args.experiment}: {server}{experiment_link(experiment.experiment_id)}", flush=True)
    if not is_server(uri):
        words = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(args.port)]
        os.execve(sys.executable, words, {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"})
