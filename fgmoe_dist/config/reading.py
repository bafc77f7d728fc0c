"""Reading `configs/*.yaml` files that inherit, changed by `--set a.b=c`, and printing what they amount to.

All mistakes are collected and reported at once; an unknown key is refused with the nearest known name.
"""

from __future__ import annotations

import copy
import difflib
import re
from pathlib import Path
from typing import Any, Iterable, Sequence

import yaml

from fgmoe_dist.config.rules import conflicts, idle_weights, list_problems
from fgmoe_dist.config.schema import BY_KIND, Config, config_class
from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import HINT
from fgmoe_dist.settings import Section, explain_validation, location, meant, validate
from fgmoe_dist.yaml_files import parse_value, read_yaml


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Reads `path` with what it inherits, applies `key=value` overrides, and validates all of it.

    Raises UserError with every mistake in one list.
    """
    values, changes, problems = _read_inheriting(Path(path), seen=()), {}, []
    of_file = copy.deepcopy(values)
    for override in overrides:
        try:
            _apply_override(values, override)
            _apply_override(changes, override)
        except UserError as error:
            problems.append(str(error))
    _drop_foreign(of_file, values, changes)
    problems += idle_weights(changes, values)
    return build_config(values, str(path), problems)


def build_config(
    values: dict[str, Any],
    origin: str = "configuration",
    known_problems: Sequence[str] = (),
    defined_tasks: Iterable[str] = (),
) -> Config:
    """Validates nested `values`; UserError lists every mistake at once, after the `known_problems`.

    `defined_tasks` are those of a data set that need not be there, as that of a checkpoint.
    """
    problems, dropped = list(known_problems), []
    wanted = config_class(*(_settings_of_kind(values, keys, problems, dropped) for keys in BY_KIND))
    config, mistakes = validate(wanted, values)
    if mistakes:
        problems += explain_validation(mistakes, wanted, "`--print-config` lists them all")
        # Drop what is faulty so that the remaining fields can still be checked against each other.
        for mistake in mistakes:
            dropped += [_drop(values, location(wanted, mistake["loc"])), meant(mistake, wanted)]
        config, mistakes = validate(wanted, values)
    if config is None:
        raise UserError(list_problems(origin, problems))
    # What stands in place of a faulty value is nobody's choice: a rule that names it has nothing to say.
    faulty = list(filter(None, dropped))
    problems += [line for line in conflicts(config, defined_tasks) if not any(_names(line, key) for key in faulty)]
    if problems:
        raise UserError(list_problems(origin, list(dict.fromkeys(problems))))
    return config


def _settings_of_kind(
    values: dict[str, Any], keys: tuple[str, ...], problems: list[str], dropped: list[str]
) -> type[Section]:
    """The settings of the kind that a section names; of an unknown kind nothing else can be checked."""
    known, (owner, section) = BY_KIND[keys], _section(values, keys)
    kind = _kind(keys, section)
    if isinstance(kind, str) and kind in known:
        return known[kind].Settings
    near = difflib.get_close_matches(str(kind), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    problems.append(f"{'.'.join(keys)}.kind={kind!r}: no such kind; {hint}{HINT}")
    del owner[keys[-1]]
    dropped.append(".".join(keys))
    return next(iter(known.values())).Settings


def _section(values: Any, keys: tuple[str, ...]) -> tuple[Any, Any]:
    """The mapping that holds the section and the section itself; None where there is none."""
    owner = None
    for key in keys:
        owner, values = values, values.get(key) if isinstance(values, dict) else None
    return owner, values


def _kind(keys: tuple[str, ...], section: Any) -> Any:
    first = next(iter(BY_KIND[keys]))
    return section.get("kind", first) if isinstance(section, dict) else first


def _drop_foreign(below: dict[str, Any], merged: dict[str, Any], above: dict[str, Any]) -> None:
    """Where `above` names another kind of section than `below`, keys that only the former kind has go from `merged`."""
    for keys, known in BY_KIND.items():
        section, given = (_section(values, keys)[1] for values in (merged, above))
        kind = _kind(keys, section)
        if kind == _kind(keys, _section(below, keys)[1]) or not isinstance(kind, str) or kind not in known:
            continue
        if not isinstance(section, dict):  # no section, which validation says
            continue
        kept = set(given) if isinstance(given, dict) else set()
        for key in set(section) - set(known[kind].Settings.model_fields) - kept:
            del section[key]


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, each field with its meaning as a comment."""
    return "\n".join(_yaml_lines(config, config.sections(), indent="")) + "\n"


def _read_inheriting(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        path = path.absolute() if path.is_fifo() else path.resolve()  # a shell's <(...) resolves to no path
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a name that no file can have
        raise UserError(f"--config {str(path)!r}: leads to no file ({error}); name one that exists") from None
    if path in seen:
        raise UserError(f"{path}: inherits from itself; break the circle")
    values = read_yaml(path, "--config")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a mapping of sections")
    parent = values.pop("inherits", None)
    if not isinstance(parent, (str, type(None))):
        raise UserError(f"{path}: inherits={parent!r}; name one file, relative to this one")
    return _merge(_read_inheriting(path.parent / parent, (*seen, path)), values) if parent else values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A file's values over those that it inherits."""
    merged = _merge_values(below, above)
    _drop_foreign(below, merged, above)
    return merged


def _merge_values(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge_values(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key=value, for instance --set train.steps=100")
    *sections, leaf = key.split(".")
    for section in sections:
        below = values.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
        values = below
    try:
        values[leaf] = parse_value(text)
    except UserError as error:
        raise UserError(f"--set {override}: {error}") from None


def _drop(values: Any, location: tuple) -> str:
    """Removes the innermost mapping entry that `location` leads through; its key, empty if there is none."""
    owner, keys = None, []
    for part in location:
        if not isinstance(values, dict) or part not in values:
            break
        owner, values = values, values[part]
        keys.append(str(part))
    if owner is not None:
        del owner[location[len(keys) - 1]]
    return ".".join(keys)


def _names(line: str, key: str) -> bool:
    """Whether a line names a setting, or one below it."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", line) is not None


def _yaml_lines(section: Section, names: Iterable[str], indent: str) -> list[str]:
    lines = []
    for name in names:
        value = getattr(section, name)
        if isinstance(value, Section):
            lines += [f"{indent}{name}:", *_yaml_lines(value, type(value).model_fields, indent + "  ")]
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
            lines.append(f"{indent}{name}: {text}  # {type(section).model_fields[name].description}")
    return lines
