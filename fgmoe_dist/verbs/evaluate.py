"""Score a checkpoint on a data set: every task's field metrics, exactly, each image once.

fgmoe evaluate --checkpoint runs/demo
torchrun --nproc-per-node 4 -m fgmoe_dist.cli evaluate --checkpoint runs/demo/checkpoints/step-00000400
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgmoe_dist.arguments import add_checkpoint, add_json, add_output, check_outputs, count_or_none
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_json
from fgmoe_dist.outputs import RESULTS, claim
from fgmoe_dist.ranks import from_first, process_group

if TYPE_CHECKING:
    from fgmoe_dist.data.shardset import ShardSet
    from fgmoe_dist.tasks import DatasetInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--shards", metavar="WHERE", help="shards to score on; by default the run's data.val")
    add_output(
        parser, "--predictions", RESULTS, metavar="DIR", help="also save every prediction as DIR/<task>/<id>.png|npy"
    )
    add_output(parser, "--pictures", RESULTS, metavar="DIR", help="also draw a panel of some images into DIR")
    parser.add_argument("--number-of-pictures", type=int, default=8, metavar="N", help="how many panels (default 8)")
    parser.add_argument(
        "--workers",
        type=count_or_none,
        default=1,
        metavar="W",
        help="processes per rank to load, and as many to count (default 1)",
    )
    add_json(parser, "the scores")


def run(args: argparse.Namespace) -> None:
    check_outputs(args)
    with process_group() as ranks:
        from fgmoe_dist.checkpoints.checkpoint import load_model
        from fgmoe_dist.data.augment import EvalTransform
        from fgmoe_dist.data.shardset import ShardSet
        from fgmoe_dist.data.sizes import check_fits
        from fgmoe_dist.evaluation.evaluate import evaluate
        from fgmoe_dist.evaluation.painter import Painter
        from fgmoe_dist.evaluation.predictions import PredictionWriter
        from fgmoe_dist.evaluation.table import print_scores

        model, config, info = load_model(args.checkpoint)
        shards = ShardSet.open(args.shards or config.data.val)
        _check_data(args, config.tasks, info, shards)
        check_fits(shards, config.data.image_size)
        observers = []
        from_first(lambda: _claim(args))
        if args.pictures:
            observers.append(Painter(model.tasks, args.pictures, args.number_of_pictures, shards.samples, ranks))
        if args.predictions:
            observers.append(PredictionWriter(args.predictions))
        scores = evaluate(
            model.to(ranks.device),
            shards,
            EvalTransform(config.data.image_size, model.encoder.mean, model.encoder.std),
            ranks,
            observers=observers,
            workers=args.workers,
        )
        if ranks.is_first:
            title = f"step {info.step}, {shards.samples} images of {shards.dataset} {shards.split}"
            print_scores(model.tasks, scores, title)
            if args.json:
                write_json(args.json, scores)
                print(f"scores: {args.json}")


def _check_data(args: argparse.Namespace, tasks: Sequence[str], trained_on: DatasetInfo, shards: ShardSet) -> None:
    """UserError where the shards mean something else by a task, or have labels of none of them."""
    from fgmoe_dist.tasks.agreement import differences

    where = f"--shards {args.shards}" if args.shards else "data.val"
    if not set(tasks) & set(shards.tasks):
        raise UserError(f"{where}: has labels for {', '.join(shards.tasks)}, the model predicts {', '.join(tasks)}")
    if found := differences(tasks, trained_on, shards, ("the checkpoint", where)):
        raise UserError(
            f"--checkpoint {args.checkpoint}: {'; '.join(found)}; name shards of the data set that it was trained on,"
            " or save predictions with `fgmoe predict` and score them with `fgmoe score`"
        )


def _claim(args: argparse.Namespace) -> None:
    for option in ("predictions", "pictures"):
        if getattr(args, option):
            claim(getattr(args, option), f"--{option}", RESULTS)
