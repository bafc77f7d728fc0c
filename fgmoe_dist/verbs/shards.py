"""Build, check and look into the shards that training streams.

`check` says in seconds whether a data set on disk is whole, and the variant that it should be (docs/archives.md);
`build` turns a NYUDv2 or PASCALContext archive, rendered rooms in either layout, or a data set of your own that a YAML
file describes, into WebDataset shards; `verify` reads a set again and names what is wrong; `dump` writes one sample's
labels as .npy files; `features` writes what the frozen encoder makes of augmented views, so that training need not run
it. Each explains itself: `fgmoe shards build --help`.

fgmoe shards check --dataset nyud --root /archives/NYUDv2
fgmoe shards build --dataset nyud --root /archives/NYUDv2 --split train --out data/nyud/train
fgmoe shards verify data/nyud/train
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import add_config, add_json, add_output, add_verb, check_outputs, count
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_json
from fgmoe_dist.machine import cores
from fgmoe_dist.outputs import DUMPED, SHARDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", required=True, metavar="check | build | verify | dump | features")
    for name, (add, what, examples) in ACTIONS.items():
        add(add_verb(verbs, name, what, examples))


def run(args: argparse.Namespace) -> None:
    check_outputs(args)
    {"check": _check, "build": _build, "verify": _verify, "dump": _dump, "features": _features}[args.action](args)


def _add_data_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME|FILE.yaml",
        help="layout of the archive, such as nyud or pascal, or a file that describes a data set of your own "
        "(configs/datasets/example.yaml)",
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="the data set's own folder; a FILE.yaml may name it itself"
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_data_set(parser)
    add_json(parser, "what was found")


def _add_build(parser: argparse.ArgumentParser) -> None:
    _add_data_set(parser)
    parser.add_argument("--split", required=True, metavar="train|val", help="which id list of the data set")
    add_output(parser, "--out", SHARDS, required=True, metavar="DIR", help="folder of the shards and index.json")
    parser.add_argument("--images", type=Path, metavar="FILE", help="build only the ids in this file, one per line")
    parser.add_argument("--workers", type=count, default=cores(), metavar="W", help="processes (default: all cores)")
    parser.add_argument(
        "--samples-per-shard", type=count, default=8, metavar="N", help="samples per shard (default 8: 6 to 20 MB)"
    )
    add_json(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="DIR", help="folder, brace pattern or URL of the set")
    add_json(parser)


def _add_dump(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", required=True, metavar="DIR", help="folder, brace pattern or URL of the set")
    parser.add_argument("--id", required=True, help="the archive's image id")
    add_output(parser, "--out", DUMPED, required=True, metavar="DIR", help="folder for ID.<task>.npy, ID.image.png")


def _add_features(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "configuration of the runs that will read them")
    add_output(parser, "--out", SHARDS, required=True, metavar="DIR", help="folder to name in data.train")
    parser.add_argument(
        "--views", type=count, metavar="K", help="augmented views of each image (default: data.views, or else 4)"
    )
    parser.add_argument("--workers", type=count, default=1, metavar="W", help="processes that read images (default 1)")
    add_json(parser)


def _check(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.check import check_data_set

    report = check_data_set(args.dataset, args.root)
    _report(args.json, report.figures())
    print("\n".join(report.lines()))
    if report.faults:
        raise UserError(
            f"{report.root}: {len(report.faults)} faults, listed above; docs/archives.md says what it holds"
        )


ACTIONS = {
    "check": (
        _add_check,
        "see whether a data set on disk is whole, before any build",
        "fgmoe shards check --dataset nyud --root /archives/NYUDv2",
    ),
    "build": (
        _add_build,
        "write one split of an archive as shards",
        "fgmoe shards build --dataset nyud --root /archives/NYUDv2 --split train --out data/nyud/train\n"
        "fgmoe shards build --dataset mine.yaml --split val --out data/mine/val",
    ),
    "verify": (
        _add_verify,
        "read all shards of a set again and name what is wrong",
        "fgmoe shards verify data/nyud/train",
    ),
    "dump": (
        _add_dump,
        "write one sample's labels as .npy files",
        "fgmoe shards dump --shards data/nyud/val --id 0001 --out look",
    ),
    "features": (
        _add_features,
        "write the frozen encoder's features, to train on without it",
        "fgmoe shards features --config configs/nyud_vitb.yaml --out data/nyud/features --views 8\n"
        "fgmoe shards features --config configs/nyud_vitb.yaml --out data/nyud/features encoder.precision=bf16",
    ),
}


def _build(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.layouts import open_layout, read_id_list
    from fgmoe_dist.data.shards import build_shards, summary
    from fgmoe_dist.data.survey import lines

    shardset = build_shards(
        open_layout(args.dataset, args.root),
        args.split,
        args.out,
        ids=read_id_list(args.images) if args.images else None,
        workers=args.workers,
        samples_per_shard=args.samples_per_shard,
    )
    figures = summary(shardset)
    print(
        f"{args.out}: {figures['samples']} samples in {figures['shards']} shards, {figures['bytes'] / 1e6:.1f} MB, "
        f"tasks {', '.join(figures['tasks'])}"
    )
    for line in lines(shardset.survey, shardset.samples, shardset.classes):
        print(line)
    _report(args.json, figures)


def _verify(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.shards import summary, verify_shards
    from fgmoe_dist.data.shardset import ShardSet

    figures = summary(ShardSet.open(args.shards))
    faults = verify_shards(args.shards)
    _report(args.json, {**figures, "faults": faults})
    for fault in faults:
        print(fault)
    if faults:
        raise UserError(f"{args.shards}: {len(faults)} faults, listed above; rebuild or copy those shards again")
    print(f"{args.shards}: all {figures['samples']} samples in {figures['shards']} shards are whole")


def _dump(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.shards import dump_sample

    for path in dump_sample(args.shards, args.id, args.out):
        print(path)


def _features(args: argparse.Namespace) -> None:
    from fgmoe_dist.config import load_config
    from fgmoe_dist.ranks import process_group

    config = load_config(args.config, args.set)
    views = args.views if args.views is not None else config.data.views or 4
    with process_group() as ranks:
        from fgmoe_dist.data.shards import summary
        from fgmoe_dist.encoders.features import build_features

        figures = summary(build_features(config, args.out, views, ranks, workers=args.workers))
        if not ranks.is_first:
            return
    size = figures["bytes"] / figures["samples"] / figures["views"]
    print(
        f"{args.out}: {figures['views']} views of {figures['samples']} images, {figures['bytes'] / 1e6:.1f} MB "
        f"({size / 1e6:.2f} MB per view); train on them with --set data.train={args.out}"
    )
    _report(args.json, figures)


def _report(path: Path | None, figures: dict) -> None:
    if path is not None:
        write_json(path, figures)
