"""What is wrong in a settings file is told by its keys, whatever kinds of values a key may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, Union

import pytest
from pydantic import Field, ValidationError, model_validator

from fgmoe_dist.settings import Section, explain_validation, known_keys, location, validate


class Wood(Section):
    kind: Literal["wood"] = "wood"
    rings: int = Field(1, ge=1)


class Oak(Wood):  # as a plug-in brings it
    acorns: int = 0


class Metal(Section):
    kind: Literal["metal"] = "metal"
    melting_point: float = 1e3


class Drawer(Section):
    width: int
    names: Union[str, list[str]] = "drawer"

    @model_validator(mode="after")
    def _fits(self) -> Drawer:
        if self.width > 9:
            raise ValueError("Too wide for any table")
        return self


class Table(Section):
    legs: int = 4
    top: Annotated[Union[Wood, Metal], Field(discriminator="kind")] = Wood()
    drawer: Optional[Drawer] = None
    shelves: dict[str, Drawer] = {}


def told(values: dict[str, Any]) -> list[str]:
    table, mistakes = validate(Table, values)
    assert table is None
    return explain_validation(mistakes, Table, "see the manual")


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"legs": "many"}, ["legs='many': input should be a valid integer"]),
        ({"lges": 3}, ["lges: no such key; did you mean legs?"]),
        ({"quux": 3}, ["quux: no such key; see the manual"]),
        ({"top": {"kind": "wood", "rings": 0}}, ["top.rings=0: input should be greater than or equal to 1"]),
        ({"top": {"kind": "metal", "melting_pont": 5}}, ["top.melting_pont: no such key; did you mean top.melting"]),
        ({"top": {"kind": "wod"}}, ["top.kind='wod': there are 'wood', 'metal'"]),
        ({"drawer": {}}, ["drawer.width: field required"]),
        ({"drawer": {"width": 10}}, ["drawer: too wide for any table"]),
        ({"drawer": {"width": 1, "names": 5}}, ["drawer.names=5: input should be a valid"] * 2),
        ({"shelves": {"upper": {"width": 1, "high": 2}}}, ["shelves.upper.high: no such key; see the manual"]),
        ({"legs": None, "top": {"kind": "wood", "rings": "x"}}, ["legs=None", "top.rings='x'"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_by_key(values, lines):
    found = told(values)
    assert len(found) == len(lines)
    for line, start in zip(found, lines):
        assert line.startswith(start)


def test_values_may_stand_below_a_key_of_their_file():
    with pytest.raises(ValidationError) as error:
        Drawer.model_validate({"width": "x", "nmaes": []})
    assert explain_validation(error.value, Drawer, "see the manual", above="tables.kitchen") == [
        "tables.kitchen.width='x': input should be a valid integer, unable to parse string as an integer",
        "tables.kitchen.nmaes: no such key; did you mean tables.kitchen.names?",
    ]
    with pytest.raises(ValidationError) as error:
        Drawer.model_validate({"width": 10})
    assert explain_validation(error.value, Drawer, "", above="drawer") == ["drawer: too wide for any table"]
    assert explain_validation(error.value, Drawer, "") == ["too wide for any table"]


def test_keys_of_every_kind_are_known():
    assert known_keys(Table) == [
        "legs", "top", "top.kind", "top.rings", "top.acorns", "top.melting_point", "drawer", "drawer.width",
        "drawer.names", "shelves",
    ]  # fmt: skip


def test_kinds_are_no_part_of_the_way_to_a_key():
    assert location(Table, ("top", "wood", "rings")) == ("top", "rings")
    assert location(Table, ("drawer", "names", "list[str]", 0)) == ("drawer", "names", 0)
    assert location(Table, ("nonsense", "x")) == ("nonsense", "x")
