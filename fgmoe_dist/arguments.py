"""Options that several verbs share, so that they are spelt, checked and explained alike."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fgmoe_dist.errors import UserError
from fgmoe_dist.outputs import Kind, check_output

_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
# Where nothing is as good as leaving the option out.
_MAY_BE_EMPTY = ("--uri", "--experiment")


class Parser(argparse.ArgumentParser):
    """A parser whose text is kept as it was written, and whose errors are one line that teaches."""

    def __init__(self, *args: Any, **kwargs: Any):
        # Options are looked for by name before the parser sees them, so none may be cut short.
        super().__init__(
            *args, **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **kwargs}
        )

    def parse_known_args(self, args=None, namespace=None):  # of argparse: what parses, below a verb too
        if self._subparsers is None:
            for name in (word.partition("=")[0] for word in args or () if word.startswith("--")):
                near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75)
                if near and near[0] != name:
                    self.error(f"there is no {name}; did you mean {near[0]}?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}; `{self.prog} --help` explains it\n")


def add_config(parser: argparse.ArgumentParser, which: str = "YAML configuration, see configs/") -> None:
    """`--config` and `--set`, for `fgmoe_dist.config.load_config(args.config, args.set)`."""
    parser.add_argument("--config", required=True, metavar="FILE", help=which)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change one of its settings, as in --set train.steps=100; repeatable, and `--set` itself may be left out",
    )  # fmt: skip


def add_verb(verbs: argparse._SubParsersAction, name: str, what: str, examples: str) -> argparse.ArgumentParser:
    """A verb below a verb: what it does, in the list and at the head of its own help, with examples."""
    return verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.\n\n{examples}")


def count(text: str) -> int:
    """The type of an option that is a number of things, of which there is one at least."""
    return _whole_number(text, 1)


def count_or_none(text: str) -> int:
    """The type of an option that is a number of things, of which there may be none."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, {least} or more")
    return number


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The command line of a verb; where it takes settings, `key=value` stands for `--set key=value`."""
    return parser.parse_args(_with_set(parser, words))


def _with_set(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words with `--set` before each setting that lacks it, in their order: of two of one key the later counts.

    After an option the word is its value, even with a `=` in it, as in `--config runs/lr=1/config.yaml`.
    """
    parsers = list(_parsers(parser))
    if not any("--set" in each._option_string_actions for each in parsers):
        return list(words)
    flags = {name for each in parsers for name, action in each._option_string_actions.items() if action.nargs == 0}
    found: list[str] = []
    for before, word in zip(("", *words), words):
        is_value = before.startswith("-") and "=" not in before and before not in flags
        found += ["--set", word] if _SETTING.match(word) and not is_value else [word]
    return found


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        for inner in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from _parsers(inner)


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
    add_output(parser, "--json", metavar="FILE", help=f"write {what} there, as JSON")


def add_output(parser: argparse.ArgumentParser, option: str, kind: Kind | None = None, **described: Any) -> None:
    """An option that names a file, or with `kind` a folder, that the verb writes; `check_outputs` looks at it."""
    parser.add_argument(option, type=Path, action=_Output, const=kind, **described)


class _Output(argparse.Action):
    """Notes the path with its option and kind, beside putting it where argparse would."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        others = [each for each in getattr(namespace, "outputs", ()) if each[1] != self.option_strings[0]]
        namespace.outputs = [*others, (values, self.option_strings[0], self.const)]


def check_outputs(args: argparse.Namespace) -> None:
    """UserError if something that was asked for cannot be written: before the work, so the first thing of a verb."""
    for path, option, kind in getattr(args, "outputs", ()):
        check_output(path, option, kind)


def refuse_empty(words: Sequence[str]) -> None:
    """UserError for an option without a value, as `--out "$FOLDER"` has where FOLDER is not set.

    An empty path would be the current folder.
    """
    for before, word in zip(("", *words), words):
        option, equals, value = word.partition("=")
        if equals and not value and option.startswith("--") and option not in _MAY_BE_EMPTY:
            raise UserError(f"{option}: is empty; give it a value (is a variable of the shell not set?)")
        if not word.strip() and before not in _MAY_BE_EMPTY:
            raise UserError(
                f"{before or 'an argument'}: is empty; give it a value (is a variable of the shell not set?)"
            )
