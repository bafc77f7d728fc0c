"""`index.json` as read: JSON that anybody may have edited, cut off or written by other tools (docs/contracts.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import IntegerMap, Label
from fgmoe_dist.settings import explain_validation

FORMAT = 1
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[^/\x00]+$")]  # of what lies beside the index, never elsewhere


class _Facts(BaseModel):
    """Types are taken as they are: a number in quotes is a word. Other keys may be those of a later version."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Record(_Facts):
    name: Name
    samples: Count
    bytes: Count
    sha256: str
    ids: list[str]


class _Tally(_Facts):
    """`survey.Tally.figures`."""

    images: Count
    pixels: float
    shares: list[float] = []
    low: float = 0
    high: float = 0
    mean: float = 0
    median: float = 0


class _Set(_Facts):
    dataset: str
    split: str
    tasks: list[str]
    classes: dict[str, list[str]]
    boundary_max_dist: float = Field(gt=0, lt=1)
    shards: list[_Record]
    definitions: dict[str, dict[str, Any]] = {}
    largest: Annotated[list[Count], Field(min_length=2, max_length=2)] = [0, 0]
    survey: dict[str, _Tally] = {}


class _Views(_Facts):
    views: list[Name] = Field(min_length=1)
    levels: list[Annotated[list[Count], Field(min_length=3, max_length=3)]]
    made_with: dict[str, Any]


def parse_index(data: bytes, index_url: str) -> dict[str, Any]:
    """The index of a set, or of all views of one.

    Raises:
        UserError: no JSON, of another format, or a value that it cannot have.
    """
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"shard index {index_url} is no JSON ({error}): rebuild the set") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"shard index {index_url} is not of format {FORMAT}: rebuild the set with this version")
    model = _Views if "views" in index else _Set
    try:
        model.model_validate(index)
    except ValidationError as error:
        first, *others = explain_validation(error, model, "no index has it")
        more = f" and {len(others)} more" if others else ""
        raise UserError(f"shard index {index_url}: {first}{more}: name other shards, or rebuild the set") from error
    return index


def check_survey(survey: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Label]) -> None:
    """UserError unless what an index says of the labels fits the tasks that it names (`survey.Tally.figures`)."""
    for task, found in survey.items():
        if task not in labels:
            raise UserError(f"survey.{task}: it has no such task: rebuild the set")
        label = labels[task]
        if isinstance(label, IntegerMap):
            whole = len(found.get("shares", ())) == label.count
        else:
            whole = not found["pixels"] or {"low", "high", "mean", "median"} <= found.keys()
        if not whole:
            raise UserError(f"survey.{task}: is not whole: rebuild the set")
