"""The one reader of YAML: configurations, descriptions of data sets, and the values of `--set`.

A key given twice is refused, which YAML libraries let pass with the last one. A word is a number, a truth value or null
only where every version of YAML agrees; what older versions made of `no`, `010`, `1:30`, `1_000` or 2024-01-01 is not
guessed. Such a word stays as it is written, and the setting that it is for reads it: `010` is the number ten where a
number is due and the name "010" where a name is, and so is 1e-3, which some readers take for a number and others not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fgmoe_dist.errors import UserError

# In PyYAML's own terms these are fewer words than it resolves, so what it writes without quotes is read as it was.
_WORDS = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": ("<<", ["<"]),
}


_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_NO_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list] = {}
    # Dates, sets and bytes are nobody's setting, even where a tag asks for one.
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in _TAGS or tag is None  # None: what becomes of a tag that is not known
    }


for _name, (_pattern, _first) in _WORDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)


def read_yaml(path: str | Path, option: str = "") -> Any:
    """What a YAML file holds; None if it is empty.

    Args:
        option: stands before the path in a message, as in `--config`.

    Raises:
        UserError: it cannot be read, is no YAML, or gives keys twice; all of them are named.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        what = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{option} {path}: cannot be read ({what}); name an existing YAML file".lstrip()) from None
    return parse_yaml(data, str(path))


def parse_yaml(text: str | bytes, origin: str) -> Any:
    """What a YAML text holds; UserError, beginning with `origin`, if it is none or gives keys twice."""
    try:
        return _parse(text)
    except _GivenTwice as error:
        raise UserError(f"{origin}: {error}") from None
    except _NO_YAML as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{origin}: is no valid YAML ({what})") from None


def parse_value(text: str) -> Any:
    """The value in `key=value`: a list, a mapping or a text in quotes as YAML has them, else one word as in a file.

    What is no YAML, such as a path with a pattern in braces, is taken as it is written. UserError if a mapping gives
    keys twice.
    """
    text = text.strip()
    if not text or text[0] not in "[{'\"":
        return parse_word(text) if text else ""  # YAML reads nothing as null
    try:
        value = _parse(text)
    except _NO_YAML as error:
        if isinstance(error, _GivenTwice):
            raise UserError(str(error)) from None
        return text
    return value if ":" in text or not isinstance(value, dict) else text  # {0..3} is no mapping


class _GivenTwice(ValueError):
    """Keys that a text gives more than once."""


def _parse(text: str | bytes) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if twice := list(_given_twice(node, "", {})):
            raise _GivenTwice("; ".join(twice))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def parse_word(text: str) -> Any:
    """One word as a YAML file has it: a number, a truth value, null, or else the text itself."""
    loader = _Loader("")
    try:
        return loader.construct_object(yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text))
    except ValueError:  # more digits than Python reads
        return text


def _given_twice(node: yaml.Node, above: str, is_open: dict[int, bool]) -> Iterator[str]:
    """A line for each key that a mapping gives more than once. `<<` takes other mappings in, and may come again.

    `is_open` says of the nodes met so far whether they are still being walked; one that an anchor names comes again.
    """
    if id(node) in is_open:
        if is_open[id(node)]:
            raise ValueError(f"{above.rstrip('.')} holds itself")
        return
    is_open[id(node)] = True
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _given_twice(item, f"{above}{index}.", is_open)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, list[int]] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                lines.setdefault(name, []).append(key.start_mark.line + 1)
            yield from _given_twice(value, f"{above}{name}.", is_open)
        yield from (_twice(above + name, found) for name, found in lines.items() if len(found) > 1)
    is_open[id(node)] = False


def _twice(key: str, lines: list[int]) -> str:
    where = " and ".join(map(str, dict.fromkeys(lines)))
    return f"{key} is given twice ({'lines' if 'and' in where else 'line'} {where}); keep one"
