"""Score saved predictions, of this or any other method, exactly as the field does, without MATLAB.

Predictions are files <task>/<id>.png or .npy at the images' native size:
  semseg, human_parts  uint8 class ids          sal, edge  uint8(255 * probability)
  depth                float32 .npy, metres     normals    float32 .npy [H, W, 3], or uint8 RGB with n = 2x/255 - 1
Tasks that a data set defines itself are saved as their kind asks: see docs/evaluation.md.

fgmoe score --dataset nyud --root NYUDv2 --split val --predictions out/ --json scores.json
fgmoe score --dataset mine.yaml --split val --predictions out/ --report report/
fgmoe score --shards data/nyud/val --predictions out/ --tasks edge --baseline single_task.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fgmoe_dist.arguments import add_json, add_output, check_outputs, count
from fgmoe_dist.errors import UserError
from fgmoe_dist.machine import cores
from fgmoe_dist.outputs import REPORT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        metavar="NAME|FILE.yaml",
        help="labels: layout of --root, such as nyud or pascal, or a file that describes a data set of your own",
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="the unpacked archive's own folder; a FILE.yaml may name it itself"
    )
    parser.add_argument("--split", default="val", metavar="train|val", help="split of --dataset (default val)")
    parser.add_argument("--shards", metavar="WHERE", help="labels: a shard folder or pattern, in place of --dataset")
    parser.add_argument("--predictions", required=True, type=Path, metavar="DIR", help="folder of <task>/<id>.png|npy")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: every task with a folder of predictions")
    parser.add_argument("--images", type=Path, metavar="FILE", help="score only the ids in this file, one per line")
    parser.add_argument("--workers", type=count, default=cores(), metavar="W", help="processes (default: all cores)")
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="scores of single-task models (as --json writes) for delta_m"
    )
    add_json(parser, "{task: {metric: value}}")
    add_output(parser, "--details", metavar="FILE", help="write per-class and per-image figures as JSON")
    add_output(parser, "--report", REPORT, metavar="DIR", help="write DIR/index.html: figures, charts, images")


def run(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.layouts import read_id_list
    from fgmoe_dist.evaluation.score_files import score
    from fgmoe_dist.evaluation.scores_json import read_scores
    from fgmoe_dist.evaluation.table import print_scores
    from fgmoe_dist.files import write_json
    from fgmoe_dist.metrics.delta_m import mean_gain, relative_gains
    from fgmoe_dist.tasks import create_tasks

    # What can be wrong is looked at before the work, which may take minutes.
    check_outputs(args)
    baseline = read_scores(args.baseline) if args.baseline else None
    info, parts = _labels(args, read_id_list(args.images) if args.images else None)
    tasks = create_tasks(list(dict.fromkeys(args.tasks or _predicted(args.predictions, info.tasks))), info)
    if baseline is not None:
        _require_headlines(tasks, baseline, args.baseline)

    scored = score(parts, tasks, args.predictions, args.workers)
    scores = scored.scores()
    images = sum(len(part.ids) for part in parts)
    print_scores(tasks, scores, f"{images} images of {args.shards or args.root or args.dataset}")
    if args.json:
        write_json(args.json, scores)  # before delta_m, which a score that is no number ends
    gains = None
    if baseline is not None:
        gains = relative_gains(_headlines(tasks, scores), _headlines(tasks, baseline), _signs(tasks))
        gain = mean_gain(gains)
        each = ", ".join(f"{task} {value:+.2f}" for task, value in gains.items())
        print(f"delta_m against {args.baseline}: {gain:+.2f} % ({each})")
        if args.json:
            write_json(args.json, scores | {"delta_m": {"percent": gain, **gains}})
    if args.details:
        write_json(args.details, scored.details())
    if args.report:
        from fgmoe_dist.reports.page import write_report

        title, subtitle = f"Scores of {args.predictions.name}", _describe(args, info, images)
        page = write_report(args.report, tasks, scored, parts, args.predictions, title, subtitle, baseline, gains)
        print(f"report: {page}")


def _labels(args: argparse.Namespace, only: list[str] | None) -> tuple[Any, list]:
    """What is known of the data set, and its images in pieces of work."""
    from fgmoe_dist.data.layouts import open_layout
    from fgmoe_dist.data.shardset import ShardSet
    from fgmoe_dist.evaluation.score_files import archive_parts, shard_parts

    if bool(args.shards) == bool(args.dataset or args.root):
        raise UserError("the labels come from --shards, or from --dataset (with --root): give one of the two")
    if args.shards:
        shards = ShardSet.open(args.shards)
        return shards, shard_parts(shards, only)
    if not args.dataset:
        raise UserError("--root needs --dataset nyud or --dataset pascal to say how it is laid out")
    layout = open_layout(args.dataset, args.root)
    return layout, archive_parts(layout, args.split, only)


def _predicted(folder: Path, tasks: tuple[str, ...]) -> list[str]:
    found = [task for task in tasks if (folder / task).is_dir()]
    if not found:
        raise UserError(f"predictions folder {folder} has none of {', '.join(tasks)}: save <task>/<id>.png|npy in it")
    return found


def _headlines(tasks: list, scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {task.name: scores[task.name][task.headline] for task in tasks}


def _signs(tasks: list) -> dict[str, bool]:
    return {task.name: task.lower_is_better for task in tasks}


def _require_headlines(tasks: list, baseline: dict[str, dict[str, float]], path: Path) -> None:
    for task in tasks:
        if not baseline.get(task.name, {}).get(task.headline):
            raise UserError(
                f"--baseline {path} has no {task.headline} of {task.name}, or it is 0: add the single-task model's, or "
                "name the other tasks with --tasks"
            )


def _describe(args: argparse.Namespace, info: Any, images: int) -> str:
    where = args.shards or args.root or args.dataset
    split = info.split if args.shards else args.split
    return f"{images} images of {info.dataset} {split} in {where}, predictions in {args.predictions}"
