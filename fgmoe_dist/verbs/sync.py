"""Bring MLflow up to date with run folders: of runs that were killed, or trained where there was no network.

A run folder has everything; what the store lacks is sent, and nothing twice. A run that was killed so hard that nobody
could note it (SIGKILL, a power cut) says RUNNING; where its process is known to be dead it becomes KILLED, and where
that cannot be known from here, with --ended.

fgmoe sync runs                                          every run in runs/, each to the store it was trained with
fgmoe sync runs/a runs/b --uri http://tracking:5000      copied from a cluster without a network
fgmoe sync runs/a --uri sqlite:///all.db --experiment b  into another store, under another experiment
fgmoe sync runs/a --ended                                says RUNNING, but the node that it ran on is gone
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import add_json, check_outputs
from fgmoe_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")
    parser.add_argument(
        "--uri", default="", metavar="URI", help="MLflow store or server (default: each run's own tracking.uri)"
    )
    parser.add_argument(
        "--experiment",
        default="",
        metavar="NAME",
        help="for runs that the store does not have yet (default: each run's own tracking.experiment)",
    )
    parser.add_argument("--ended", action="store_true", help="runs that say RUNNING do not run any more")
    add_json(parser, "what became of every run")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from fgmoe_dist.files import write_json
    from fgmoe_dist.tracking.run_folder import runs_in
    from fgmoe_dist.tracking.sync import sync

    check_outputs(args)
    if args.uri == "none":
        raise UserError("--uri none: is no store; name one")
    done, problems = [], []
    for folder in [folder for path in args.runs for folder in runs_in(path)]:
        try:
            found = sync(folder, args.uri, args.experiment, args.ended)
        except UserError as error:  # the other runs are no worse for it
            problems.append(str(error))
            continue
        for each in found:
            note = f", {each.note}" if each.note else ""
            print(f"{each.run}: {each.status}{note}; {each.sent} figures and files sent\n  {each.store}", flush=True)
        done += found
    if args.json:
        write_json(args.json, [asdict(each) for each in done])
    if problems:
        raise UserError("; ".join(problems))
