"""Trains FGMoE. Every launcher starts this file once per process:

torchrun --nproc-per-node 2 fgmoe_dist/train.py --config configs/demo.yaml
deepspeed --num_gpus 2 fgmoe_dist/train.py --config configs/pascal_vitb.yaml
python fgmoe_dist/train.py --config configs/nyud_vitb.yaml       (one process)
fgmoe train --config configs/nyud_vitb.yaml                      (the same)
"""

from __future__ import annotations

import argparse
import sys

from fgmoe_dist import plugins
from fgmoe_dist.arguments import Parser, add_config, add_output, add_plugin, check_outputs, count, parse, refuse_empty
from fgmoe_dist.config import check_world, load_config, to_yaml
from fgmoe_dist.errors import UserError
from fgmoe_dist.outputs import RESULTS
from fgmoe_dist.progress import tell
from fgmoe_dist.ranks import exit_with_error, from_first, process_group
from fgmoe_dist.training.engines import check_engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH",
        help="auto: go on from the run folder's latest checkpoint if there is one; never: start anew; or a checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, look at the labels, train two steps, evaluate one image, print the plan; write nothing",
    )
    add_output(
        parser, "--pictures", RESULTS, metavar="DIR", help="with --dry-run: draw an augmented batch as DIR/batch.png"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and end")
    parser.add_argument(
        "--check-ranks", type=count, metavar="N", help="only check that the configuration is right and fits N ranks"
    )
    # What deepspeed's launcher adds; LOCAL_RANK says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """The whole of a run, on this rank."""
    if args.pictures and not args.dry_run:
        raise UserError(
            f"--pictures {args.pictures}: goes with --dry-run; a run draws train.pictures at its evaluations"
        )
    check_outputs(args)
    config = load_config(args.config, args.set)
    if args.print_config:
        print(to_yaml(config), end="")
        return
    if args.check_ranks is not None:
        check_world(config, args.check_ranks)
        check_engine(config.parallel.engine)
        return
    with process_group() as ranks:
        # Imported here, so that --help, --print-config and mistakes in the configuration answer at once.
        from fgmoe_dist.planning.dry_run import dry_run, trial_engine
        from fgmoe_dist.planning.flops import figures_of
        from fgmoe_dist.tracking.recorder import check_places
        from fgmoe_dist.training.loop import train
        from fgmoe_dist.training.trainer import Trainer

        if ranks.is_first:
            tell(f"{config.run.name}: reading the indices of the shards, making the encoder and the decoder ...")
        from_first(lambda: check_places(config.run.dir, config.model_dump(mode="json")))
        if args.dry_run:
            dry_run(Trainer(config, ranks, engine=trial_engine(config, ranks.world)), args.pictures)
        else:
            train(Trainer(config, ranks), args.resume, {"work": figures_of(config)} if ranks.is_first else None)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("train.py", description=__doc__)
    add_arguments(parser)
    add_plugin(parser)
    try:
        arguments = sys.argv[1:] if argv is None else argv
        refuse_empty(arguments)
        run(parse(parser, plugins.take(arguments)))
    except BaseException as error:
        exit_with_error(error)


if __name__ == "__main__":
    main()
