"""Score saved predictions, of this or any other method, exactly as the field does, without MATLAB.

Predictions are files <task>/<id>.png or .npy at the images' native size:
  semseg, human_parts  uint8 class ids          sal, edge  uint8(255 * probability)
  depth                float32 .npy, metres     normals    float32 .npy [H, W, 3], or uint8 RGB with n = 2x/255 - 1

fgmoe score --dataset nyud --root NYUDv2 --split val --predictions out/ --json scores.json
fgmoe score --shards data/nyud/val --predictions out/ --tasks edge --baseline single_task.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from fgmoe_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", type=Path, metavar="DIR", help="labels: the unpacked archive's own folder")
    where.add_argument("--shards", metavar="WHERE", help="labels: a shard folder or pattern")
    parser.add_argument("--dataset", choices=("nyud", "pascal"), help="layout of --root")
    parser.add_argument("--split", default="val", choices=("train", "val"), help="split of --root (default val)")
    parser.add_argument("--predictions", required=True, type=Path, metavar="DIR", help="folder of <task>/<id>.png|npy")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: every task with a folder of predictions")
    parser.add_argument("--images", type=Path, metavar="FILE", help="score only the ids in this file, one a line")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="W", help="processes (default: all cores)"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="scores of single-task models (as --json writes) for delta_m"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write {task: {metric: value}}")
    parser.add_argument("--details", type=Path, metavar="FILE", help="write per-class and per-image figures as JSON")


def run(args: argparse.Namespace) -> None:

    from fgmoe_dist.data.layouts import open_layout, read_id_list
    from fgmoe_dist.data.shardset import ShardSet
    from fgmoe_dist.evaluation.delta_m import delta_m
    from fgmoe_dist.evaluation.score import archive_parts, score, shard_parts
    from fgmoe_dist.evaluation.table import print_scores
    from fgmoe_dist.tasks import create_tasks

    if args.root and not args.dataset:
        raise UserError("--root needs --dataset nyud or --dataset pascal to say how it is laid out")
    only = read_id_list(args.images) if args.images else None
    info = ShardSet.open(args.shards) if args.shards else open_layout(args.dataset, args.root)
    parts = shard_parts(info, only) if args.shards else archive_parts(info, args.split, only)
    tasks = create_tasks(args.tasks or _predicted(args.predictions, info.tasks), info)
    baseline = _read_baseline(args.baseline) if args.baseline else None

    scored = score(parts, {task.name: task.meter() for task in tasks}, args.predictions, args.workers)
    scores = scored.scores()
    images = sum(len(part.ids) for part in parts)
    print_scores(tasks, scores, f"{images} images of {args.shards or args.root}")
    _write(args.json, scores)
    _write(args.details, scored.details())
    if baseline is not None:
        gain = delta_m(
            {task.name: scores[task.name][task.headline] for task in tasks},
            {task.name: baseline.get(task.name, {}).get(task.headline) for task in tasks},
            {task.name: task.lower_is_better for task in tasks},
        )
        print(f"delta_m against {args.baseline}: {gain:+.2f} %")
        _write(args.json, scores | {"delta_m": {"percent": gain}})


def _predicted(folder: Path, tasks: tuple[str, ...]) -> list[str]:
    found = [task for task in tasks if (folder / task).is_dir()]
    if not found:
        raise UserError(f"predictions folder {folder} has none of {', '.join(tasks)}: save <task>/<id>.png|npy in it")
    return found


def _read_baseline(path: Path) -> dict[str, dict[str, float]]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"baseline {path} cannot be read ({error}); give a file that --json wrote") from error
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise UserError(f"baseline {path} is not {{task: {{metric: value}}}}; give a file that --json wrote")
    return value


def _write(path: Path | None, value: Any) -> None:
    if path:
        path.write_text(json.dumps(_without_nan(value), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    """NaN (nothing to score) is null in JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
