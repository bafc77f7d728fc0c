"""Make a trained model smaller: drop the routed experts that images of yours use least, or keep one task alone.

Counts on the images of --calibrate how often each expert is chosen, keeps the most used of every block, and writes the
smaller model as a run folder that evaluates, predicts, exports and trains on like any other (SEER-MoE, arXiv
2404.05089). A dropped expert's score stays among those that the others are weighed against: to drop what nobody chose,
`--keep used`, changes no prediction. Several --keep make a table of accuracy against size, with --evaluate.

fgmoe prune --checkpoint runs/a --calibrate shards/train --keep used --output runs/used
fgmoe prune --checkpoint runs/a --calibrate shards/train --keep 0.75 0.5 --evaluate shards/val --output runs/fewer
fgmoe prune --checkpoint runs/a --calibrate shards/train --task depth --output runs/depth

Of a run of decoder.kind=interrogate it takes out the units that no gate uses, and needs no images:
fgmoe prune --checkpoint runs/gated --output runs/small

docs/experts.md shows how to train it on, to do with fewer experts a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgmoe_dist.arguments import add_checkpoint, add_json, add_output, check_outputs, count
from fgmoe_dist.errors import UserError
from fgmoe_dist.outputs import RUN
from fgmoe_dist.progress import tell
from fgmoe_dist.ranks import Ranks, process_group

if TYPE_CHECKING:
    from fgmoe_dist.checkpoints.folder import CheckpointState
    from fgmoe_dist.config import Config
    from fgmoe_dist.model import Model

USED = "used"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--calibrate", metavar="SHARDS", help="images on which experts are counted; fgmoe needs some")
    parser.add_argument("--images", type=count, metavar="N", help="count on the first N of them (default: all)")
    parser.add_argument(
        "--keep", nargs="+", type=_keep, default=[USED], metavar="SHARE",
        help="share of the experts to keep, as 0.5, or `used`: those that some token chose (default used)",
    )  # fmt: skip
    parser.add_argument(
        "--by", choices=("hard", "soft"), default="hard",
        help="what counts: how often an expert is chosen, or the sum of the gates it is chosen with (default hard)",
    )  # fmt: skip
    parser.add_argument(
        "--per", choices=("layer", "model"), default="layer",
        help="the share is kept of each block and task, or of all together (default layer)",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="drop experts of these tasks only (default all)")
    parser.add_argument("--task", metavar="TASK", help="cut this one task's own model out of the whole")
    parser.add_argument("--evaluate", metavar="SHARDS", help="score every model on these")
    add_output(
        parser, "--output", RUN, required=True, metavar="DIR",
        help="run folder to write; with several --keep a folder of them, keep-SHARE each",
    )  # fmt: skip
    add_output(parser, "--markdown", metavar="FILE", help="write the table there too")
    add_json(parser, "the table")


def _keep(text: str) -> str | float:
    if text == USED:
        return text
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share above 0 and up to 1, such as 0.5, or `used`")
    return share


def run(args: argparse.Namespace) -> None:
    check_outputs(args)
    with process_group() as ranks:
        from fgmoe_dist.checkpoints.checkpoint import load_model
        from fgmoe_dist.files import write_atomically, write_json
        from fgmoe_dist.pruning.table import to_markdown
        from fgmoe_dist.pruning.write import check_free

        for folder in _folders(args).values():
            check_free(folder, "--output")
        if ranks.world > 1:
            raise UserError(f"prune: runs in one process, not in {ranks.world}; start it without a launcher")
        tell(f"loading {args.checkpoint} and the encoder's weights ...")
        model, config, state = load_model(args.checkpoint)
        rows = list(_ways(args, config)(args, model.to(ranks.device), config, state, ranks))
        table = to_markdown(rows)
        print(table, end="")
        if args.markdown:
            write_atomically(args.markdown, table)
        if args.json:
            write_json(args.json, rows)
        print(f"models: {args.output}")


def _ways(args: argparse.Namespace, config: Config) -> Callable[..., Iterator[dict[str, Any]]]:
    """How a model of this decoder is made smaller. UserError where it is not, or where the options do not fit."""
    kind = config.decoder.kind
    if kind == "interrogate":
        if given := [name for name in ("calibrate", "tasks", "task") if getattr(args, name)]:
            raise UserError(f"--{given[0]}: decoder.kind=interrogate loses what its gates do not use; leave it out")
        if config.decoder.gates:
            raise UserError(f"--checkpoint {args.checkpoint}: was pruned already, its gates are fixed")
        return _prune_units
    if kind != "fgmoe":
        raise UserError(
            f"--checkpoint {args.checkpoint}: nothing of its decoder.kind={kind} can be left out; name a run of fgmoe"
            " or interrogate"
        )
    if not args.calibrate:
        raise UserError("--calibrate: is missing; name shards on which to count how often each expert is chosen")
    return _prune_experts


def _prune_units(
    args: argparse.Namespace, model: Model, config: Config, state: CheckpointState, ranks: Ranks
) -> Iterator[dict[str, Any]]:
    """A row of the table for the gated model, then for the one without what no gate takes, which is written."""
    from fgmoe_dist.checkpoints.checkpoint import load_model
    from fgmoe_dist.checkpoints.folder import find_checkpoint
    from fgmoe_dist.pruning import units
    from fgmoe_dist.pruning.cut import tensors_of
    from fgmoe_dist.pruning.table import row
    from fgmoe_dist.pruning.write import write_run

    yield row("whole", model, config, args.evaluate, ranks)
    checkpoint = find_checkpoint(args.checkpoint)
    tensors = dict(tensors_of(checkpoint))
    open_LTC = units.open_gates(tensors)
    about = {"pruned": {"from": str(checkpoint)}}
    write_run(args.output, units.without_units(tensors, open_LTC), state, units.changes(open_LTC), about)
    smaller, its_config, _ = load_model(args.output)
    yield row(USED, smaller.to(ranks.device), its_config, args.evaluate, ranks)


def _prune_experts(
    args: argparse.Namespace, model: Model, config: Config, state: CheckpointState, ranks: Ranks
) -> Iterator[dict[str, Any]]:
    """A row of the table for the whole model, then for each smaller one, which is written."""
    from fgmoe_dist.checkpoints.checkpoint import load_model
    from fgmoe_dist.checkpoints.folder import find_checkpoint
    from fgmoe_dist.pruning import cut
    from fgmoe_dist.pruning.choose import choose
    from fgmoe_dist.pruning.table import calibration_images, row
    from fgmoe_dist.pruning.usage import count_usage
    from fgmoe_dist.pruning.write import write_run

    tasks = _tasks(args, config)
    usage = count_usage(model, calibration_images(model, config, args.calibrate, args.images))
    counts_LTE = usage.hard_LTE if args.by == "hard" else usage.soft_LTE
    checkpoint = find_checkpoint(args.checkpoint)
    yield row("whole", model, config, args.evaluate, ranks)
    folders = _folders(args)
    for keep in folders:
        kept = choose(counts_LTE, config.experts, keep, args.per == "model", tasks)
        tensors = cut.without_experts(cut.tensors_of(checkpoint), kept)
        changes: dict[str, Any] = {"experts": {"kept": kept}, "parallel": {"ep_size": 1}}
        if args.task:
            tensors, changes = (
                cut.of_one_task(tensors, config, args.task),
                changes | cut.changes(config, args.task, kept),
            )
        about = {"from": str(checkpoint), "keep": keep, "by": args.by, "per": args.per, "calibrated_on": args.calibrate,
                 "images": usage.images}  # fmt: skip
        write_run(folders[keep], tensors, state, changes, {"pruned": about})
        smaller, its_config, _ = load_model(folders[keep])
        yield row(str(keep), smaller.to(ranks.device), its_config, args.evaluate, ranks)


def _folders(args: argparse.Namespace) -> dict[str | float, Path]:
    """The run folder of each model to be written, by what it keeps; of those named twice one."""
    keeps = list(dict.fromkeys(args.keep))
    return {keep: args.output if len(keeps) == 1 else args.output / f"keep-{keep}" for keep in keeps}


def _tasks(args: argparse.Namespace, config: Config) -> list[int]:
    from fgmoe_dist.pruning.cut import check_one_task

    if args.task:
        if args.tasks:
            raise UserError(f"--task {args.task}: goes without --tasks; what other tasks use is dropped")
        check_one_task(config, args.task, "--task")
        return [config.tasks.index(args.task)]
    unknown = set(args.tasks or ()) - set(config.tasks)
    if unknown:
        raise UserError(f"--tasks {' '.join(sorted(unknown))}: the model predicts {', '.join(config.tasks)}")
    return [index for index, task in enumerate(config.tasks) if not args.tasks or task in args.tasks]
