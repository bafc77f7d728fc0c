"""Look after a run's checkpoints: which there are, whether they still are what was written, and which may go.

A checkpoint holds a checksum of each of its files. Training and evaluation compare them before they read; `verify` does
so whenever you like, after a copy for instance. `rm` keeps `latest` and `best` right, which removing a folder by hand
does not. Each explains itself: `fgmoe checkpoint rm --help`.

fgmoe checkpoint list runs/demo
fgmoe checkpoint verify runs/demo
fgmoe checkpoint rm runs/demo/checkpoints/step-00000040
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import add_json, add_verb, check_outputs
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", required=True, metavar="list | verify | rm")
    listing = add_verb(
        verbs, "list", "show a run's checkpoints: step, score, size, and whether their files are as written",
        "fgmoe checkpoint list runs/demo",
    )  # fmt: skip
    verifying = add_verb(
        verbs, "verify", "compare every file with the checksum it was written with; exit code 2 where one differs",
        "fgmoe checkpoint verify runs/demo\nfgmoe checkpoint verify runs/demo/checkpoints/best",
    )  # fmt: skip
    for each in (listing, verifying):
        each.add_argument("path", type=Path, metavar="RUN", help="a run folder, or one checkpoint")
        add_json(each, "what was found")
    removing = add_verb(
        verbs, "rm", "remove checkpoints; `latest` and `best` are set right",
        "fgmoe checkpoint rm runs/demo/checkpoints/step-00000040",
    )  # fmt: skip
    removing.add_argument(
        "paths", type=Path, nargs="+", metavar="CHECKPOINT", help="folders such as runs/demo/checkpoints/step-00000040"
    )
    removing.add_argument("--force", action="store_true", help="also those that `latest` or `best` name")


def run(args: argparse.Namespace) -> None:
    check_outputs(args)
    {"list": _list, "verify": _verify, "rm": _remove}[args.action](args)


def _list(args: argparse.Namespace) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    found = [_facts(checkpoint) for checkpoint in _those_of(args.path)]
    table = Table()
    for heading in ("checkpoint", "score", "tasks", "ranks", "MiB", "files", ""):
        table.add_column(heading, justify="left" if heading in ("checkpoint", "files", "") else "right")
    for facts in found:
        score = "" if facts["score"] is None else f"{facts['score']:.4g}"
        size = f"{facts['bytes'] / 2**20:.1f}"
        scored, world = (str(facts[key] or "") for key in ("scored", "world"))
        table.add_row(facts["name"], score, scored, world, size, facts["files"], ", ".join(facts["named"]))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110).print(table)
    if args.json:
        write_json(args.json, found)


def _facts(checkpoint: Path) -> dict:
    from fgmoe_dist.checkpoints.folder import damages, pointers_to, read_state

    faults, state = damages(checkpoint), None
    try:
        state = read_state(checkpoint)
    except UserError:
        word = "damaged"
    else:
        word = "damaged" if faults else "as written" if state.files else "no checksums"
    return {
        "name": checkpoint.name, "path": str(checkpoint), "step": state and state.step, "score": state and state.score,
        "scored": state and (state.scored or len(state.tasks) if state.score is not None else 0),
        "world": state and state.world, "bytes": sum(f.stat().st_size for f in checkpoint.iterdir() if f.is_file()),
        "files": word, "faults": faults, "named": pointers_to(checkpoint),
    }  # fmt: skip


def _verify(args: argparse.Namespace) -> None:
    found = [_facts(checkpoint) for checkpoint in _those_of(args.path)]
    for facts in found:
        print(f"{facts['path']}: {facts['files']}", flush=True)
    if args.json:
        write_json(args.json, found)
    if faults := [fault for facts in found for fault in facts["faults"]]:
        raise UserError(f"{'; '.join(faults)}; `fgmoe checkpoint rm` removes what cannot be used")


def _remove(args: argparse.Namespace) -> None:
    from fgmoe_dist.checkpoints.folder import pointers_to, remove

    # All are looked at before the first goes.
    chosen = list(dict.fromkeys(_one(path) for path in args.paths))
    for checkpoint in chosen:
        if (named := pointers_to(checkpoint)) and not args.force:
            raise UserError(f"{checkpoint}: is the run's {' and '.join(named)}; --force removes it all the same")
    for checkpoint in chosen:
        try:
            remove(checkpoint)
        except OSError as error:
            raise UserError(f"{checkpoint}: cannot be removed ({error.strerror})") from None
        print(f"removed {checkpoint}", flush=True)


def _one(path: Path) -> Path:
    from fgmoe_dist.checkpoints.folder import all_checkpoints

    if path.absolute() not in (found.absolute() for found in all_checkpoints(path.parent)):
        raise UserError(f"{path}: is no checkpoint; name folders such as runs/demo/checkpoints/step-00000040")
    return path.absolute()


def _those_of(path: Path) -> list[Path]:
    """One checkpoint, or all of a run's. UserError if there is none."""
    from fgmoe_dist.checkpoints.folder import all_checkpoints, find_checkpoint, is_checkpoint

    if is_checkpoint(path) and (one := find_checkpoint(path)) is not None:
        return [one]
    found = all_checkpoints(path) or all_checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path}: no checkpoint there; name a run folder or one of its checkpoints/step-... folders")
    return found
