"""What every section of a settings file is: strict, frozen, each field with its meaning; and what is wrong in one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Mapping, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

Mistake = Mapping[str, Any]  # as pydantic tells it: `type`, `loc`, `msg`, `input`, `ctx`


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


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Any) -> tuple[Model | None, list[Mistake]]:
    """What `values` amount to, or None and everything that is wrong in them."""
    found = list(_misread(model, values, ()))
    try:
        section = model.model_validate(values)
    except ValidationError as error:
        told = {mistake["loc"] for mistake in found}
        return None, found + [mistake for mistake in error.errors() if mistake["loc"] not in told]
    return (None, found) if found else (section, [])


def _misread(model: type[BaseModel], values: Any, above: tuple) -> Iterator[Mistake]:
    """Values that pydantic would take for what nobody means by them, such as `true` for 1."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name not in model.model_fields:
            continue
        annotation = model.model_fields[name].annotation
        sections = [kind for kind in _kinds(annotation) if _is_model(kind)]
        if len(sections) == 1:
            yield from _misread(sections[0], value, (*above, name))
        elif fault := _fault(_leaves(annotation), value):
            yield {"type": "value_error", "loc": (*above, name), "msg": fault, "input": value, "ctx": {}}


def _fault(wanted: set[Any], value: Any) -> str | None:
    given = list(_leaves_of(value))
    if wanted & {int, float} and not wanted & {bool, Any} and any(isinstance(one, bool) for one in given):
        return "give a number, not a truth value"
    if any(isinstance(one, str) and "\0" in one for one in given):
        return "a text holds no NUL character"
    return None


def explain_validation(
    mistakes: ValidationError | Iterable[Mistake], model: type[BaseModel], all_keys: str, above: str = ""
) -> list[str]:
    """A line for each mistake that `validate` found in some values: the key, the value, what is wrong with it.

    Args:
        all_keys: ends the line of a key that is like no key there is: where all are to be seen.
        above: the key that the values stand under in their file.
    """
    found = mistakes.errors() if isinstance(mistakes, ValidationError) else list(mistakes)
    found = _without_other_kinds([(location(model, mistake["loc"]), mistake) for mistake in found])
    return list(dict.fromkeys(_explain(mistake, model, all_keys, above) for mistake in found))


def _without_other_kinds(found: list[tuple[tuple, Mistake]]) -> list[Mistake]:
    """Without what says only that a value is not of another kind that its key could hold: no list, for a mapping."""

    def is_idle(keys: tuple, mistake: Mistake) -> bool:
        others = [(other, each["type"]) for other, each in found if each is not mistake and other[: len(keys)] == keys]
        return mistake["type"].endswith("_type") and any(
            len(other) > len(keys) or not kind.endswith("_type") for other, kind in others
        )

    return [mistake for keys, mistake in found if not is_idle(keys, mistake)]


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


def _explain(entry: Mistake, model: type[BaseModel], all_keys: str, above: str) -> str:
    inner, kind = ".".join(map(str, location(model, entry["loc"]))), entry["type"]
    if kind == "missing" and isinstance(entry["loc"][-1], int):  # of a list with so many values
        inner, kind = inner.rpartition(".")[0], "too_short"
    key = _joined(above, inner)
    if kind == "extra_forbidden":
        near = _nearest_key(inner, model)
        return f"{key}: no such key; " + (f"did you mean {_joined(above, near)}?" if near else all_keys)
    if kind == "union_tag_invalid":
        tag, given = entry["ctx"]["discriminator"].strip("'"), entry["ctx"]
        return f"{_joined(key, tag)}={given['tag']!r}: there are {given['expected_tags']}"
    told = _told(kind, entry, _field(model, inner.split(".")))
    told = f"{told[0].lower()}{told[1:]}"
    if not key:
        return told
    # What a section lacks, or a rule for all of it, is not told by printing the section.
    value = "" if isinstance(entry["input"], dict) else f"={_shortened(repr(entry['input']))}"
    return f"{key}{value}: {told}"


def _shortened(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most - 20]} ... {text[-15:]}"


def _joined(*keys: str) -> str:
    return ".".join(filter(None, keys))


def _told(kind: str, entry: Mistake, field: FieldInfo | None) -> str:
    """What is wrong with a value, in words of a settings file; pydantic's own speak of Python's types."""
    default = getattr(field, "default", None)
    example = f", as in {list(default)}" if isinstance(default, (list, tuple)) and default else ""
    if kind in ("tuple_type", "list_type", "too_short", "too_long") and example and get_origin(field.annotation):
        count = len(get_args(field.annotation)) if get_origin(field.annotation) is tuple else "some"
        return f"give a list of {count} values{example}"
    plain = {
        "dict_type": "give a mapping, key: value",
        "model_type": "is a section, whose keys stand below it",
        "tuple_type": "give a list",
        "bool_parsing": "give true or false",
        "bool_type": "give true or false",
    }
    if kind == "string_type" and isinstance(entry["input"], (int, float)):
        return f"{entry['msg']}; in quotes it is one"
    return plain.get(kind, entry["msg"].removeprefix("Value error, "))


def _field(model: type[BaseModel], keys: Sequence[str]) -> FieldInfo | None:
    """The field that some keys lead to."""
    field = model.model_fields.get(keys[0])
    if field is None or len(keys) == 1:
        return field
    inner = next((kind for kind in _kinds(field.annotation) if _is_model(kind)), None)
    return _field(inner, keys[1:]) if inner else None


def meant(entry: Mistake, model: type[BaseModel]) -> str | None:
    """The key that an unknown one is most like; None for mistakes of other sorts."""
    if entry["type"] != "extra_forbidden":
        return None
    return _nearest_key(".".join(map(str, location(model, entry["loc"]))), model)


def _nearest_key(key: str, model: type[BaseModel]) -> str | None:
    """A name like it in the same section, else one very like it anywhere; sections in common say nothing."""
    section, _, leaf = key.rpartition(".")
    known = [name.rpartition(".") for name in known_keys(model)]
    for beside, cutoff in (({name: above for above, _, name in known if above == section}, 0.6),
                           ({name: above for above, _, name in known}, 0.8)):  # fmt: skip
        for name in difflib.get_close_matches(leaf, beside, n=1, cutoff=cutoff):
            return f"{beside[name]}.{name}".lstrip(".")
    return None


def _leaves(annotation: Any) -> set[Any]:
    """The types that a field is made of, those in lists and mappings too; of a section and of literals, `Any`."""
    if get_origin(annotation) is Literal or _is_model(annotation):
        return {Any}
    inner = [part for part in get_args(annotation) if part not in (NoneType, Ellipsis)]
    inner = inner[:1] if get_origin(annotation) is Annotated else inner
    inner = inner[1:] if get_origin(annotation) is dict else inner  # the values alone
    return {leaf for part in inner for leaf in _leaves(part)} if inner else {annotation}


def _leaves_of(value: Any) -> Iterator[Any]:
    """The values in lists and mappings, or the value itself."""
    if isinstance(value, (list, tuple, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves_of(inner)
    else:
        yield value


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
        return get_origin(kind) is not None and str(name).startswith(f"{get_origin(kind).__name__}[")
    fields = (field.annotation for field in kind.model_fields.values())
    return kind.__name__ == name or any(get_origin(a) is Literal and name in get_args(a) for a in fields)


def flatten(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, keys as `--set` takes and MLflow records them. Empty mappings vanish."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value})
    return flat
