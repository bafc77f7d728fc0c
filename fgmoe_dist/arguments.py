"""Options that several verbs share, so that they are spelt, checked and explained alike."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_config(parser: argparse.ArgumentParser, which: str = "YAML configuration, see configs/") -> None:
    """`--config` and `--set`, for `fgmoe_dist.config.load_config(args.config, args.set)`."""
    parser.add_argument("--config", required=True, metavar="FILE", help=which)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change one of its settings, as in --set train.steps=100; repeatable",
    )  # fmt: skip


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, of a trained model."""
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="DIR",
        help="a run folder, its checkpoints folder, or one in it, such as checkpoints/step-00000400",
    )  # fmt: skip


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """`--plugin`, for its help alone: `plugins.take` has taken it off the command line before a parser sees that."""
    parser.add_argument(
        "--plugin", action="append", metavar="MODULE",
        help="a module, or the path of a .py file, that adds tasks, decoders, ... (docs/extending.md); repeatable",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser, what: str = "the figures") -> None:
    """`--json`, for what a verb found or made; `what` completes "write ... there"."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {what} there, as JSON")
