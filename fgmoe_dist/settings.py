"""What every section of a settings file is: strict, frozen, each field with its meaning; and what is wrong in one."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Mapping, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError


def _filled(value: Any) -> Any:
    """Refuses text that is empty, as where a variable of the shell is not set, and what cannot be written down."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty; give it a value (is a variable of the shell not set?)")
    if isinstance(value, str) and any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise ValueError("holds bytes that are no UTF-8; write it anew")
    return value


def _meant_as_path(value: Any) -> Any:
    """`~` is a word of the shell's; as it stands it would be a folder of this name."""
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError("begins with ~, which only a shell understands; write the whole path")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("holds a null character, which no path may; write it anew")
    return value


Name = Annotated[str, BeforeValidator(_filled)]
FilePath = Annotated[Path, BeforeValidator(_filled), BeforeValidator(_meant_as_path)]


class Section(BaseModel):
    """Refuses unknown keys, NaN and infinity. Each field's `description` is its comment in the written YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def explain_validation(error: ValidationError, model: type[BaseModel], all_keys: str, above: str = "") -> list[str]:
    """A line for each mistake that `model` found in some values: the key, the value, what is wrong with it.

    Args:
        all_keys: ends the line of a key that is like no key there is: where all are to be seen.
        above: the key that the values stand under in their file.
    """
    return [_explain(entry, model, all_keys, above) for entry in error.errors()]


def location(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The keys that lead to a mistake, outermost first: pydantic's `loc` without what it says of unions.

    Between a key whose value may be of several kinds and the keys inside that value, pydantic names the kind.
    """
    kinds, keys = [model], []
    for part in loc:
        if len(kinds) > 1:
            kinds = [kind for kind in kinds if _is_named(kind, part)][:1]
            continue
        keys.append(part)
        kind = kinds[0] if kinds else None
        if _is_model(kind):
            kinds = _kinds(kind.model_fields[part].annotation) if part in kind.model_fields else []
        else:
            kinds = _kinds(get_args(kind)[-1]) if get_origin(kind) in (dict, list) else []
    return tuple(keys)


def known_keys(model: type[BaseModel]) -> list[str]:
    """`["run", "run.name", ...]`, those of every kind that a key may hold."""
    keys: dict[str, None] = {}
    for name, field in model.model_fields.items():
        keys[name] = None
        for kind in filter(_is_model, _kinds(field.annotation)):
            keys.update({f"{name}.{inner}": None for one in _family(kind) for inner in known_keys(one)})
    return list(keys)


def _family(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """A section's class and those made from it, which a registry may put in its place."""
    return [kind, *(one for heir in kind.__subclasses__() for one in _family(heir))]


def _explain(entry: dict[str, Any], model: type[BaseModel], all_keys: str, above: str) -> str:
    inner, kind = ".".join(map(str, location(model, entry["loc"]))), entry["type"]
    key = _joined(above, inner)
    if kind == "extra_forbidden":
        near = _nearest_key(inner, model)
        return f"{key}: no such key; " + (f"did you mean {_joined(above, near)}?" if near else all_keys)
    if kind == "union_tag_invalid":
        tag, given = entry["ctx"]["discriminator"].strip("'"), entry["ctx"]
        return f"{_joined(key, tag)}={given['tag']!r}: there are {given['expected_tags']}"
    told = entry["msg"].removeprefix("Value error, ")
    told = f"{told[0].lower()}{told[1:]}"
    if not key:
        return told
    # What a section lacks, or a rule for all of it, is not told by printing the section.
    value = "" if isinstance(entry["input"], dict) else f"={entry['input']!r}"
    return f"{key}{value}: {told}"


def _joined(*keys: str) -> str:
    return ".".join(filter(None, keys))


def _nearest_key(key: str, model: type[BaseModel]) -> str | None:
    """A name like it in the same section, else one very like it anywhere; sections in common say nothing."""
    section, _, leaf = key.rpartition(".")
    known = [name.rpartition(".") for name in known_keys(model)]
    for beside, cutoff in (({name: above for above, _, name in known if above == section}, 0.6),
                           ({name: above for above, _, name in known}, 0.8)):  # fmt: skip
        for name in difflib.get_close_matches(leaf, beside, n=1, cutoff=cutoff):
            return f"{beside[name]}.{name}".lstrip(".")
    return None


def _kinds(annotation: Any) -> list[Any]:
    """What a field may hold besides None."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) if part is not NoneType for kind in _kinds(part)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_named(kind: Any, name: int | str) -> bool:
    """Whether pydantic means `kind` by `name`: a model by its class, or by the value of the field that tells it."""
    if not _is_model(kind):
        return False
    fields = (field.annotation for field in kind.model_fields.values())
    return kind.__name__ == name or any(get_origin(a) is Literal and name in get_args(a) for a in fields)


def flatten(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, keys as `--set` takes and MLflow records them. Empty mappings vanish."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value})
    return flat
