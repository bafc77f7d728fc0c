"""What two data sets must share by a task, and what they need not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks.agreement import differences

OWN = {
    "heat": {"kind": "scalar", "unit": "K", "metric": "rmse", "scales": "none"},
    "albedo": {"kind": "vectors", "channels": 3, "unit": False, "range": [0.0, 1.0], "metric": "rmse"},
    "crease": {"kind": "boundary", "max_dist": 0.01},
    "stuff": {"kind": "classes"},
    "hot": {"kind": "binary"},
}
CLASSES = {"semseg": ["wall", "bed", "lamp"], "stuff": ["wood", "iron"]}
NAMES = ["semseg", "depth", "normals", "sal", "edge", *OWN]


def dataset(**changes) -> SimpleNamespace:
    """The data set above, some definitions or classes of it changed; `max_dist` is that of `edge`."""
    classes = {name: changes.get(name, names) for name, names in CLASSES.items()}
    definitions = {name: {**facts, **changes.get(name, {})} for name, facts in OWN.items() if name not in CLASSES}
    definitions["stuff"] = OWN["stuff"]
    return SimpleNamespace(tasks=changes.get("tasks", NAMES), classes=classes, definitions=definitions,
                           boundary_max_dist=changes.get("max_dist", 0.011))  # fmt: skip


def found(**changes) -> list[str]:
    return differences(NAMES, dataset(), dataset(**changes), ("the checkpoint", "the shards"))


def test_what_is_the_same_agrees():
    assert found() == []
    assert differences(["depth"], dataset(), dataset(semseg=["x"], max_dist=0.5, heat={"unit": "C"}), ("a", "b")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"semseg": ["bed", "wall", "lamp"]}, "semseg: the same classes in another order: class 0 is wall in"),
        ({"semseg": ["wall", "bed"]}, "semseg: 3 classes in the checkpoint, 2 in the shards"),
        ({"semseg": ["wall", "bed", "lamp", "cup"]}, "semseg: 3 classes in the checkpoint, 4 in the shards"),
        ({"semseg": ["wall", "bed", "cup"]}, "semseg: class 2 is lamp in the checkpoint, cup in the shards"),
        ({"stuff": ["iron", "wood"]}, "stuff: the same classes in another order"),
        ({"heat": {"unit": "C"}}, "heat: unit is K in the checkpoint, unit is C in the shards"),
        ({"heat": {"scales": "inverse"}}, "heat: label is ScalarMap(unit='K', scales='none'"),
        ({"heat": {"metric": "mae"}}, "heat: headline is rmse in the checkpoint, headline is mae in the shards"),
        ({"albedo": {"channels": 4}}, "albedo: channels is 3 in the checkpoint, channels is 4 in the shards"),
        ({"albedo": {"range": [0, 2]}}, "albedo: "),
        ({"albedo": {"unit": True, "metric": "mean"}}, "albedo: "),
        ({"crease": {"max_dist": 0.02}}, "crease: max_dist is 0.01 in the checkpoint, max_dist is 0.02 in the shards"),
        ({"max_dist": 0.0075}, "edge: max_dist is 0.011 in the checkpoint, max_dist is 0.0075 in the shards"),
    ],
)  # fmt: skip
def test_what_differs_is_told_in_a_line(changes, said):
    assert len(found(**changes)) == 1 and found(**changes)[0].startswith(said)


def test_each_task_is_told_and_those_that_one_lacks_are_not():
    assert len(found(semseg=["x"], heat={"unit": "C"}, max_dist=0.5)) == 3
    assert found(semseg=["x"], tasks=["depth", "heat"]) == []


def test_a_task_of_another_kind_is_told_by_its_kind():
    other = dataset()
    other.definitions["stuff"], other.classes = {"kind": "binary"}, {"semseg": CLASSES["semseg"]}
    (line,) = differences(["stuff"], dataset(), other, ("the checkpoint", "the shards"))
    assert line == "stuff: of kind classes in the checkpoint, of kind binary in the shards"


@pytest.mark.parametrize("changes", [{"classes": {}}, {"definitions": {"crease": {"kind": "boundary"}}}])
def test_what_is_not_whole_is_a_user_s_error(changes):
    broken = SimpleNamespace(**{**vars(dataset()), **changes})
    with pytest.raises(UserError, match="tasks: "):
        differences(NAMES, dataset(), broken, ("a", "b"))
