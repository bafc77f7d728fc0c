"""The registry, what a class says of itself, and the tasks that a data set defines, by values worked out by hand."""

from __future__ import annotations

import pickle
from math import log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fgmoe_dist.drawing.style import PAPER
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.meter import BoundaryMeter
from fgmoe_dist.metrics.normals import NormalsMeter
from fgmoe_dist.tasks import KINDS, TASKS, baselines, create_tasks, headlines

NAN = float("nan")
DEFINITIONS = {
    "species": {"kind": "classes"},
    "glass": {"kind": "binary"},
    "heat": {"kind": "scalar", "unit": "K", "metric": "mae"},
    "height": {"kind": "scalar", "unit": "mm"},
    "albedo": {"kind": "vectors", "channels": 3, "unit": False, "range": [0, 2], "metric": "rmse"},
    "flow": {"kind": "vectors", "channels": 2},
    "grain": {"kind": "vectors", "channels": 3, "unit": True},
    "cracks": {"kind": "boundary", "max_dist": 0.02},
}
INFO = SimpleNamespace(
    tasks=list(DEFINITIONS), classes={"species": [f"s{i}" for i in range(300)]}, definitions=DEFINITIONS
)
OWN = {task.name: task for task in create_tasks(list(DEFINITIONS), INFO, edge_positive_weight=0.9)}
SIX = SimpleNamespace(tasks=list(TASKS), classes={"semseg": ["a"], "human_parts": ["b"]}, boundary_max_dist=0.01)


def pixels(*columns):
    """`[1, K, 1, N]` of N pixels with K channels each."""
    return torch.tensor(columns, dtype=torch.float32).T[None, :, None].requires_grad_()


# ---- the registry ----


def test_a_class_knows_without_a_data_set_what_its_instances_know():
    for task in create_tasks(list(TASKS), SIX):
        kind = TASKS[task.name]
        for fact in ("name", "title", "headline", "lower_is_better", "headline_scale", "unit"):
            assert getattr(kind, fact) == getattr(task, fact), (task.name, fact)
        assert kind.label.kind in KINDS and task.headline == next(iter(task.meter().compute()))


def test_the_sum_over_tasks_is_of_like_sizes():
    assert {name: task.headline_scale for name, task in TASKS.items()} == {
        "semseg": 1, "human_parts": 1, "sal": 1, "normals": 2, "depth": 100, "edge": 1,
    }  # fmt: skip


def test_every_task_of_the_six_has_a_baseline_for_its_own_meter():
    tasks = create_tasks(list(TASKS), SIX)
    found = baselines(tasks)
    assert list(found) == list(TASKS)
    for task in tasks:
        assert found[task.name].compute().keys() == task.meter().compute().keys()


def test_only_boundaries_ask_for_a_matching_radius():
    info = SimpleNamespace(tasks=["depth", "normals", "sal"], classes={})
    assert [task.name for task in create_tasks(info.tasks, info)] == info.tasks
    (edge,) = create_tasks(["edge"], SIX)
    assert edge.meter().max_dist == 0.01 and edge.meter().label == "boundary"


@pytest.mark.parametrize(
    "name, definitions, message",
    [
        ("dept", {}, r"dept is no task \(did you mean depth\?\), and the data set defines none"),
        ("heatt", {"heat": {"kind": "scalar"}}, r"heatt is no task \(did you mean heat\?\)"),
        ("qqq", {}, "qqq is no task, and"),
        ("heat", {"heat": {"kind": "scalr"}}, r"heat is of kind scalr \(did you mean scalar\?\); use one of classes"),
        ("heat", {"heat": {"kind": "scalar", "metric": "maxF"}}, "heat: metric is maxF; use one of rmse, mae, abs_rel"),
        ("flow", {"flow": {"kind": "vectors", "metric": "mean"}}, "flow: metric is mean; use rmse"),
    ],
)
def test_what_nobody_knows_is_named_with_the_nearest(name, definitions, message):
    info = SimpleNamespace(tasks=[name], classes={}, definitions=definitions)
    with pytest.raises(UserError, match=message):
        create_tasks([name], info)


def test_tasks_travel_to_worker_processes():
    for task in (*OWN.values(), *create_tasks(list(TASKS), SIX)):
        assert headlines([pickle.loads(pickle.dumps(task))]) == headlines([task])


# ---- tasks that a data set defines ----


def test_headlines_are_what_the_definition_says():
    found = {name: (fact["metric"], fact["lower_is_better"]) for name, fact in headlines(OWN.values()).items()}
    assert found == {
        "species": ("mIoU", False), "glass": ("maxF", False), "heat": ("mae", True), "height": ("rmse", True),
        "albedo": ("rmse", True), "flow": ("rmse", True), "grain": ("mean", True), "cracks": ("odsF", False),
    }  # fmt: skip
    for task in OWN.values():
        assert task.headline == next(iter(task.meter().compute())) and task.title == task.name


def test_more_classes_than_a_byte_holds():
    task = OWN["species"]
    assert task.channels == 300 and task.ignore == 65535
    logits = torch.zeros(1, 300, 1, 3)
    logits[0, 299, 0, 0] = logits[0, 255, 0, 1] = log(2)
    loss = task.loss(logits, torch.tensor([[[299, 255, 65535]]]))
    assert loss.item() == pytest.approx(log(301 / 2))
    predicted = task.predict(logits[0])
    assert predicted.dtype == np.uint16 and predicted.tolist() == [[299, 255, 0]]
    label = np.array([[299, 7, 65535]], np.uint16)
    meter, baseline = task.meter(), task.baseline()
    meter.update(predicted, {"id": "a", "species": label})
    baseline.update({"id": "a", "species": label})
    # 299 found; 7 missed, 255 wrong
    assert meter.compute() == pytest.approx({"mIoU": 100 / 300, "mIoU_present": 50})
    assert baseline.compute()["mIoU_present"] == pytest.approx(25)
    column = task.column([predicted], [label])
    assert {word for _, word in column.legend.swatches} == {"s0", "s7", "s255", "s299"}
    assert (column.predictions[0][0, 0] == column.truths[0][0, 0]).all() and len(task.figures(meter)) == 2


def test_up_to_255_classes_stay_bytes():
    info = SimpleNamespace(tasks=["species"], classes={"species": ["x"] * 255}, definitions=DEFINITIONS)
    (task,) = create_tasks(["species"], info)
    assert task.ignore == 255 and task.predict(torch.zeros(255, 1, 1)).dtype == np.uint8


def test_a_binary_map_is_scored_as_saliency():
    task, saliency = OWN["glass"], TASKS["sal"]("sal")
    prediction, target = pixels([0, 0], [0, 0], [0, log(3)]), torch.tensor([[[0, 1, 255]]])
    assert task.loss(prediction, target).item() == saliency.loss(prediction, target).item() > 0
    meter = task.meter()
    meter.update(np.uint8([[255, 0, 0]]), {"id": "a", "glass": np.uint8([[1, 0, 255]]), "sal": None})
    assert meter.compute()["maxF"] == 100


def test_a_scalar_of_any_unit_and_sign():
    task = OWN["heat"]
    prediction = pixels([-10.0], [4.0], [9.0])
    loss = task.loss(prediction, torch.tensor([[[-13.0, 5.0, NAN]]]))
    loss.backward()
    assert loss.item() == pytest.approx((3 + 1) / 2) and prediction.grad.isfinite().all()
    predicted = task.predict(prediction.detach()[0])
    assert predicted.tolist() == [[-10, 4, 9]], "below zero is a value"
    meter = task.meter()
    meter.update(predicted, {"id": "a", "heat": np.float32([[-13, 5, NAN]])})
    assert meter.compute() == pytest.approx({"mae": 2, "rmse": sqrt(5), "abs_rel": (3 / 13 + 1 / 5) / 2})
    assert (task.unit_of("mae"), task.unit_of("abs_rel")) == ("K", "")
    assert task.baseline() is None and OWN["height"].baseline() is not None


def test_a_scalar_is_drawn_on_a_scale_in_its_unit():
    low, high = np.full((4, 5), -300.0, np.float32), np.full((4, 5), 300.0, np.float32)
    high[0] = NAN
    column = OWN["heat"].column([low], [high])
    assert [word for _, word in column.legend.ticks] == ["-200 K", "0 K", "200 K"]
    assert [position for position, _ in column.legend.ticks] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    scale_NC = column.legend.scale_NC
    assert (column.predictions[0] == scale_NC[0]).all() and (column.truths[0][1:] == scale_NC[-1]).all()


def test_free_vectors_keep_their_length():
    task = OWN["albedo"]
    prediction = pixels([0.5, 1, 2], [0, 0, 0], [7, 7, 7])
    target = pixels([0, 1, 0], [1, 1, 1], [NAN] * 3).detach()
    loss = task.loss(prediction, target)
    loss.backward()
    assert loss.item() == pytest.approx((2.5 + 3) / 2) and prediction.grad.isfinite().all()
    predicted = task.predict(prediction.detach()[0])
    np.testing.assert_array_equal(predicted[0, 0], [0.5, 1, 2])
    meter = task.meter()
    meter.update(predicted, {"id": "a", "albedo": target[0].permute(1, 2, 0).numpy()})
    assert meter.compute() == pytest.approx({"rmse": sqrt((0.25 + 4 + 3) / 6), "mae": 5.5 / 6})
    column = task.column([predicted], [None])
    assert column.predictions[0][0, 0].tolist() == [64, 128, 255] and column.truths == [None]
    assert column.legend.swatches[1] == (PAPER, "2 in every channel") and task.headline_scale == 50
    assert task.read(255 * predicted, "x").max() == 255 * 7, "free: whatever they are"


def test_two_channels_are_drawn_as_two_colours():
    column = OWN["flow"].column([np.full((2, 2, 2), 1.0, np.float32)], [None])
    assert column.predictions[0][0, 0].tolist() == [255, 255, 0]


def test_directions_are_those_of_normals():
    task, normals = OWN["grain"], TASKS["normals"]("normals")
    prediction, target = pixels([0, 0, 5], [0, 2, 0]), pixels([0, 0, 1], [1, 0, 0]).detach()
    assert task.loss(prediction, target).item() == pytest.approx(normals.loss(prediction, target).item()) == 1
    assert isinstance(task.meter(), NormalsMeter) and task.meter().label == "grain"
    np.testing.assert_allclose(task.predict(prediction.detach()[0])[0], [[0, 0, 1], [0, 1, 0]], atol=1e-6)
    assert task.headline_scale == 2 and task.baseline() is not None


def test_boundaries_have_a_radius_and_a_truth_of_their_own():
    task = OWN["cracks"]
    meter = task.meter()
    assert isinstance(meter, BoundaryMeter) and (meter.max_dist, meter.label) == (0.02, "cracks_boundary")
    # sigmoid(0) = 1/2: w = 0.9 on one boundary pixel, 0.1 on another
    loss = task.loss(pixels([0.0], [0.0], [7.0]), torch.tensor([[[1, 0, 255]]]))
    assert loss.item() == pytest.approx((0.9 + 0.1) / 2 * log(2))
