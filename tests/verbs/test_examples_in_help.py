"""Every verb's help has examples, and its own parser takes them."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

from fgmoe_dist.arguments import Parser, parse
from fgmoe_dist.cli import VERBS
from fgmoe_dist.verbs.bench import BENCHES
from fgmoe_dist.verbs.shards import ACTIONS


def help_of(capsys, verb: str, *words: str) -> str:
    with pytest.raises(SystemExit) as ending:
        parse(parser_of(verb), [*words, "--help"])
    assert ending.value.code == 0
    return capsys.readouterr().out


def parser_of(verb: str) -> Parser:
    module = importlib.import_module(f"fgmoe_dist.verbs.{verb}")
    parser = Parser(f"fgmoe {verb}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


@pytest.mark.parametrize(
    "verb",
    [*([verb] for verb in VERBS), *(["bench", name] for name in BENCHES), *(["shards", name] for name in ACTIONS)],
    ids=" ".join,
)  # fmt: skip
def test_examples_are_there_and_parse(verb, capsys):
    said = help_of(capsys, *verb)
    examples = re.findall(rf"^fgmoe {' '.join(verb)} .*$", said, re.MULTILINE)
    assert examples, said
    for example in examples:
        words = shlex.split(re.split(r" {3,}", example)[0])[2:]  # what stands far to the right explains it
        parse(parser_of(verb[0]), words)
