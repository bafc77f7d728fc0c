"""Reading `configs/*.yaml` files that inherit, changed by `--set a.b=c`, and printing what they amount to.

All mistakes are collected and reported at once; an unknown key is refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Iterable, Optional, Sequence

import yaml
from pydantic import ValidationError

from fgmoe_dist.config.rules import conflicts, list_problems
from fgmoe_dist.config.schema import Config, config_class
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.decoders.base import DecoderSettings
from fgmoe_dist.errors import UserError
from fgmoe_dist.settings import Section

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
    decoder = _decoder_settings(values, problems)
    try:
        config = config_class(decoder).model_validate(values)
    except ValidationError as error:
        problems += [_explain(entry, decoder) for entry in error.errors()]
        # Drop what is faulty so that the remaining fields can still be checked against each other.
        for entry in error.errors():
            _drop(values, entry["loc"])
        try:
            config = config_class(decoder).model_validate(values)
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


def flatten(config: Config) -> dict[str, Any]:
    """`{"experts.top_k": 4, ...}`, as MLflow records parameters."""
    return flatten_values(config.model_dump(mode="json", include=set(config.sections())))


def flatten_values(nested: dict[str, Any]) -> dict[str, Any]:
    """The same for a configuration as plain values, of a checkpoint for instance."""
    flat = {}
    for section, values in nested.items():
        if isinstance(values, dict):
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        else:
            flat[section] = values
    return flat


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


def _explain(entry: dict[str, Any], decoder: type[DecoderSettings]) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] != "extra_forbidden":
        return f"{key}={entry['input']!r}: {entry['msg'][0].lower()}{entry['msg'][1:]}"
    near = _nearest_key(key, decoder)
    return f"{key}: no such key" + (f"; did you mean {near}?" if near else "; `--print-config` lists them all")


def _nearest_key(key: str, decoder: type[DecoderSettings]) -> Optional[str]:
    """A name like it in the same section, else one very like it anywhere; sections in common say nothing."""
    section, _, leaf = key.rpartition(".")
    known = [name.rpartition(".") for name in _known_keys(decoder)]
    for beside, cutoff in (({name: above for above, _, name in known if above == section}, 0.6),
                           ({name: above for above, _, name in known}, 0.8)):  # fmt: skip
        for name in difflib.get_close_matches(leaf, beside, n=1, cutoff=cutoff):
            return f"{beside[name]}.{name}".lstrip(".")
    return None


def _known_keys(decoder: type[DecoderSettings]) -> list[str]:
    keys = []
    for name, field in config_class(decoder).model_fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += [f"{name}.{inner}" for inner in field.annotation.model_fields]
    return keys


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
