"""Compare runs: the settings that differ, headline scores, parameters and throughput.

Takes run folders, folders of run folders, or (with --experiment) the runs of an MLflow experiment. Prints a
Markdown table with a column for each run, the best score in bold where all were scored on one validation set. Of run
folders it also says how far each run is from the baseline, and within what 95 % of 1000 draws of the validation images
lie, the same draws for all runs: a difference that may have either sign is "within noise".

fgmoe compare runs
fgmoe compare runs/a runs/b --all-metrics --markdown table.md
fgmoe compare --experiment demo --uri http://tracking:5000
fgmoe compare runs --baseline single          gains (delta_m) over this run
fgmoe compare runs --published nyud           beside what has been published, and what differs in protocol
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import add_json, add_output, check_outputs, count_or_none
from fgmoe_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run folders, or folders of them (default runs); with --experiment: names of runs to keep",
    )
    parser.add_argument("--experiment", metavar="NAME", help="read this MLflow experiment instead of run folders")
    parser.add_argument(
        "--uri", default="", metavar="URI", help="MLflow store or server of the experiment (default runs/mlflow.db)"
    )
    parser.add_argument("--unfinished", action="store_true", help="also runs that failed, were killed or still run")
    parser.add_argument("--all-metrics", action="store_true", help="every metric, not only each task's headline")
    parser.add_argument(
        "--baseline", default="", metavar="RUN",
        help="the run that gains are over (default: the one of decoder single_task, or else the first)",
    )  # fmt: skip
    parser.add_argument(
        "--draws", type=count_or_none, default=1000, metavar="N",
        help="draws of the images that tell a difference from noise (default 1000); 0: none",
    )  # fmt: skip
    parser.add_argument("--published", choices=("nyud", "pascal"), help="published results of this data set below")
    add_output(parser, "--markdown", metavar="FILE", help="write the table there too")
    add_json(parser, "every run's record")


def run(args: argparse.Namespace) -> None:
    from fgmoe_dist.files import write_atomically, write_json
    from fgmoe_dist.tracking import published
    from fgmoe_dist.tracking.compare import compare, to_json, to_markdown

    check_outputs(args)
    records = _read(args)
    if not records:
        raise UserError("compare: there is no finished run; add --unfinished for the others")
    rows = compare(records, args.all_metrics, args.baseline, args.draws)
    table = to_markdown(records, rows)
    if args.published:
        table += "\n" + published.table(records, args.published)
    print(table, end="")
    if args.markdown:
        write_atomically(args.markdown, table)
    if args.json:
        write_json(args.json, to_json(records, rows))


def _read(args: argparse.Namespace) -> list:
    from fgmoe_dist.tracking.compare import read_folders, read_mlflow
    from fgmoe_dist.tracking.mlflow_store import resolve_uri

    if not args.experiment:
        return read_folders(args.runs or ["runs"], args.unfinished)
    records = read_mlflow(resolve_uri(args.uri, Path("runs/any")), args.experiment, args.unfinished)
    unknown = set(args.runs) - {record.name for record in records}
    if unknown:
        raise UserError(f"--experiment {args.experiment}: has no run {', '.join(sorted(unknown))}")
    return [record for record in records if not args.runs or record.name in args.runs]
