from types import SimpleNamespace

import numpy as np
from PIL import Image

from fgmoe_dist.drawing import panel as panels
from fgmoe_dist.drawing.panel import Scene, panel, sheet
from fgmoe_dist.drawing.pictures import class_colours, depth_scale
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.tasks.depth import Depth

CLASSES = {"semseg": ["wall", "floor", "bed"], "human_parts": ["background", "head"]}
NAMES = ["semseg", "human_parts", "sal", "normals", "depth", "edge"]
TASKS = create_tasks(NAMES, SimpleNamespace(tasks=NAMES, classes=CLASSES, boundary_max_dist=0.01))
H, W = 60, 80


def predictions():
    return {
        "semseg": np.tile(np.uint8([[0] * (W // 2) + [1] * (W // 2)]), (H, 1)),
        "human_parts": np.ones((H, W), np.uint8),
        "sal": np.full((H, W), 128, np.uint8),
        "normals": np.tile(np.float32([0, 0, -1]), (H, W, 1)),
        "depth": np.tile(np.linspace(1, 3, W, dtype=np.float32), (H, 1)),
        "edge": np.zeros((H, W), np.uint8),
    }


def labels():
    found = predictions()
    found["sal"], found["edge"] = np.ones((H, W), np.uint8), np.full((H, W), 255, np.uint8)
    return found


def test_every_task_with_and_without_truth(tmp_path):
    image = np.zeros((H, W, 3), np.uint8)
    without = panel(image, predictions(), None, TASKS, tmp_path / "new" / "a.png")
    both = panel(image, predictions(), labels(), TASKS)
    assert (np.asarray(Image.open(tmp_path / "new" / "a.png")) == without).all()
    assert both.dtype == np.uint8 and both.shape[0] > without.shape[0] + panels.TILE * H // W


def test_the_legend_shows_classes_present_and_no_others():
    truth = {"semseg": np.full((H, W), 255, np.uint8)}
    picture = panel(np.zeros((H, W, 3), np.uint8), {"semseg": predictions()["semseg"]}, truth, TASKS)
    foot = picture[-panels.MARGIN - panels.CAPTION :]
    shown = [(foot == colour).all(axis=2).sum() > 80 for colour in class_colours(CLASSES["semseg"])]
    assert shown == [True, True, False]


def test_prediction_and_truth_share_one_depth_scale():
    near, far = np.full((H, W), 1.0, np.float32), np.full((H, W), 3.0, np.float32)
    column = Depth().column([near], [far])
    assert (column.predictions[0] == depth_scale()[0]).all() and (column.truths[0] == depth_scale()[-1]).all()
    assert [word for _, word in column.legend.ticks] == ["1 m", "2 m", "3 m"]


def test_a_predicted_depth_of_zero_is_shown_as_the_nearest():
    column = Depth().column([np.zeros((H, W), np.float32)], [np.full((H, W), 3.0, np.float32)])
    assert (column.predictions[0] == depth_scale()[0]).all()


def test_a_task_without_label_and_an_image_without_a_task():
    image = np.zeros((H, W, 3), np.uint8)
    some = {"depth": predictions()["depth"]}
    first = Scene(image, predictions(), some, "a caption that is much too long for its place " * 3)
    assert sheet([first, Scene(image, some), Scene(image[:, :20], some)], TASKS).ndim == 3


def test_missing_depth_everywhere_is_drawn():
    nothing = np.zeros((H, W), np.float32)
    assert panel(np.zeros((H, W, 3), np.uint8), {"depth": nothing}, {"depth": nothing}, TASKS).ndim == 3
