from types import SimpleNamespace

import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.delta_m import delta_m, mean_gain, relative_gains
from fgmoe_dist.tasks import create_tasks

SIGN = {"semseg": False, "depth": True, "normals": True}


def test_by_hand():
    scores = {"semseg": 55.0, "depth": 0.45, "normals": 19.0}
    baseline = {"semseg": 50.0, "depth": 0.5, "normals": 20.0}
    assert delta_m(scores, baseline, SIGN) == pytest.approx((10 + 10 + 5) / 3)
    assert mean_gain(relative_gains(scores, baseline, SIGN)) == delta_m(scores, baseline, SIGN)


def test_worse_is_negative_and_equal_is_zero():
    assert delta_m({"depth": 0.6}, {"depth": 0.5}, SIGN) == pytest.approx(-20)
    assert delta_m({"semseg": 40.0}, {"semseg": 40.0, "edge": 70.0}, SIGN) == 0


@pytest.mark.parametrize(
    "scores, baseline, message",
    [
        ({}, {"depth": 1.0}, "no task"),
        ({"semseg": 5.0}, {"depth": 1.0}, "has no semseg"),
        ({"semseg": 5.0}, {"semseg": 0.0}, "semseg scores 5.0 against a baseline of 0.0"),
        ({"semseg": float("nan")}, {"semseg": 3.0}, "must be finite"),
    ],
)
def test_bad_input_is_named(scores, baseline, message):
    with pytest.raises(UserError, match=message):
        delta_m(scores, baseline, SIGN)


def test_gains_of_each_task_have_the_sign_its_task_knows():
    info = SimpleNamespace(
        tasks=["semseg", "human_parts", "sal", "normals", "depth", "edge"],
        classes={"semseg": ["a", "b"], "human_parts": ["background", "head"]},
        boundary_max_dist=0.01,
    )
    tasks = create_tasks(info.tasks, info)
    headlines = {task.name: task.headline for task in tasks}
    assert headlines == {
        "semseg": "mIoU", "human_parts": "mIoU", "sal": "maxF", "normals": "mean", "depth": "rmse", "edge": "odsF"
    }  # fmt: skip
    gains = relative_gains(
        dict.fromkeys(headlines, 11.0), dict.fromkeys(headlines, 10.0), {t.name: t.lower_is_better for t in tasks}
    )
    assert gains == pytest.approx({name: -10 if name in ("depth", "normals") else 10 for name in headlines})
