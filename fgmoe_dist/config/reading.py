"""Reading `configs/*.yaml` files that inherit, changed by `--set a.b=c`, and printing what they amount to.

All mistakes are collected and reported at once; an unknown key is refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Iterable, Sequence

import yaml
from pydantic import ValidationError

from fgmoe_dist.config.rules import conflicts, list_problems
from fgmoe_dist.config.schema import Config, config_class
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import DecoderSettings
from fgmoe_dist.errors import UserError
from fgmoe_dist.settings import Section, explain_validation, location

DEFAULT_DECODER = "fgmoe"


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Reads `path` with what it inherits, applies `key=value` overrides, and validates all of it.

    Raises UserError with every mistake in one list.
    """
    values, problems = _read_inheriting(Path(path), seen=()), []
    for override in overrides:
        try:
            _apply_override(values, override)
        except UserError as error:
            problems.append(str(error))
    return build_config(values, str(path), problems)


def build_config(values: dict[str, Any], origin: str = "configuration", known_problems: Sequence[str] = ()) -> Config:
    """Validates nested `values`; UserError lists every mistake at once, after the `known_problems`."""
    problems = list(known_problems)
    wanted = config_class(_decoder_settings(values, problems))
    try:
        config = wanted.model_validate(values)
    except ValidationError as error:
        problems += explain_validation(error, wanted, "`--print-config` lists them all")
        # Drop what is faulty so that the remaining fields can still be checked against each other.
        for entry in error.errors():
            _drop(values, location(wanted, entry["loc"]))
        try:
            config = wanted.model_validate(values)
        except ValidationError:
            raise UserError(list_problems(origin, problems)) from None
    problems += conflicts(config)
    if problems:
        raise UserError(list_problems(origin, problems))
    return config


def _decoder_settings(values: dict[str, Any], problems: list[str]) -> type[DecoderSettings]:
    """The settings of the decoder that `values` name; of an unknown one nothing else can be checked."""
    section = values.get("decoder")
    kind = section.get("kind", DEFAULT_DECODER) if isinstance(section, dict) else DEFAULT_DECODER
    if isinstance(kind, str) and kind in DECODERS:
        return DECODERS[kind].Settings
    near = difflib.get_close_matches(str(kind), DECODERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DECODERS)}"
    problems.append(f"decoder.kind={kind!r}: no such decoder; {hint}")
    del values["decoder"]
    return DECODERS[DEFAULT_DECODER].Settings


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, each field with its meaning as a comment."""
    return "\n".join(_yaml_lines(config, config.sections(), indent="")) + "\n"


def _read_inheriting(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: inherits from itself; break the circle")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); name an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a mapping of sections")
    parent = values.pop("inherits", None)
    if not isinstance(parent, (str, type(None))):
        raise UserError(f"{path}: inherits={parent!r}; name one file, relative to this one")
    return _merge(_read_inheriting(path.parent / parent, (*seen, path)), values) if parent else values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
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
        values[leaf] = yaml.safe_load(text) if text else ""  # YAML reads nothing as null
    except yaml.YAMLError:
        values[leaf] = text


def _drop(values: Any, location: tuple) -> None:
    """Removes the innermost mapping entry that `location` leads through."""
    owner, key = None, None
    for part in location:
        if not isinstance(values, dict) or part not in values:
            break
        owner, key, values = values, part, values[part]
    if owner is not None:
        del owner[key]


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
