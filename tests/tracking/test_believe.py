"""Which differences are told from noise, from the files that runs leave."""

import json

import numpy as np
import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.delta_m import delta_m
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.tracking.believe import Headline, differences
from fgmoe_dist.tracking.compare import compare, read_folders, to_json
from tests.tracking.test_compare import make

FACTS = {"tasks": ["depth", "semseg"], "classes": {"semseg": ["a", "b"]}, "boundary_max_dist": 0.01, "definitions": {}}
TASKS = [Headline("semseg", "mIoU", False), Headline("depth", "rmse", True)]


def save(path, error, hits, ids=range(60), order=1, facts=FACTS):
    """Images of 100 pixels whose depth is wrong by some `error` metres and of whose classes `hits` are right."""
    sums, rng = ImageSums(), np.random.default_rng(0)
    for n in list(ids)[::order]:
        hard = np.random.default_rng(n).exponential(1.0)
        wrong = (hard + error) ** 2 * 100
        right = float(hits + rng.integers(0, 3))
        sums.add(str(n), {"depth": np.array([100, wrong, 0, 0, 0, 0, 0, 0.0]),
                          "semseg": np.array([right, 100 - right, 100 - right, right])})  # fmt: skip
    return str(sums.save(path, facts))


def test_a_clear_difference_and_one_within_noise(tmp_path):
    files = [save(tmp_path / "a.npz", 0.1, 60), save(tmp_path / "b.npz", 0.2, 70), save(tmp_path / "c.npz", 0.1, 60)]
    found = differences(files, TASKS, baseline=0)
    worse, same = found["depth"][1:]
    assert worse.value > 0 and worse.is_clear and tuple(same) == (0, 0, 0) and not same.is_clear
    better = found["semseg"][1]
    assert better.low < better.value < better.high and better.is_clear and better.value > 0
    scores = [{task.name: _whole(file, task) for task in TASKS} for file in files]
    signs = {"semseg": False, "depth": True}
    assert found["delta_m"][1].value == pytest.approx(delta_m(scores[1], scores[0], signs), rel=1e-12)
    assert found["depth"][1].value == pytest.approx(scores[1]["depth"] - scores[0]["depth"], rel=1e-12)


def _whole(file, task):
    rows = ImageSums.load(file)[0].matrix(task.name).toarray().sum(0)
    if task.name == "depth":
        return (rows[1] / rows[0]) ** 0.5
    hit = rows[[0, 3]]
    return 100 * (hit / (hit + rows[1] + rows[2])).mean()


def test_the_order_of_the_images_does_not_matter_but_the_images_do(tmp_path):
    files = [save(tmp_path / "a.npz", 0.1, 60), save(tmp_path / "b.npz", 0.1, 60, order=-1),
             save(tmp_path / "c.npz", 0.1, 60, ids=range(1, 61)), ""]  # fmt: skip
    found = differences(files, TASKS, baseline=0)
    assert found["depth"][1] is not None and found["depth"][1].value == pytest.approx(0, abs=1e-12)
    assert found["depth"][2:] == [None, None] == found["delta_m"][2:]
    assert differences(files, TASKS, baseline=3) == {} == differences(files, TASKS, 0, draws=0)


def test_a_file_that_says_nothing_of_its_data_set_is_named(tmp_path):
    file = save(tmp_path / "a.npz", 0.1, 60, facts={"classes": {}})
    with pytest.raises(UserError, match="a.npz: does not say"):
        differences([file, file], TASKS, 0)
    file = save(tmp_path / "c.npz", 0.1, 60, facts={**FACTS, "tasks": ["depth"]})
    with pytest.raises(UserError, match="c.npz: tasks: .* no labels for semseg"):
        differences([file, file], TASKS, 0)
    other = save(tmp_path / "b.npz", 0.1, 60, facts={**FACTS, "classes": {"semseg": ["a", "b", "c"]}})
    with pytest.raises(UserError, match="b.npz: semseg was scored by another release"):
        differences([other, other], TASKS, 0)


def test_a_comparison_says_so(tmp_path):
    for name, error in (("a", 0.1), ("b", 0.2), ("c", 0.1)):
        folder = make(tmp_path / name, rmse=error)
        save(folder.image_sums_file(30), error, 60)
    make(tmp_path / "d")
    records = read_folders([tmp_path])
    rows = compare(records, baseline="a")
    row = next(row for row in rows if row.section == "difference from a" and row.name == "depth rmse")
    assert row.cells[0] == "0" and row.cells[1].startswith("+0.0765 [+0.0") and "noise" not in row.cells[1]
    assert row.cells[2:] == ("+0 [+0, +0] within noise", "-")
    gain = next(row for row in rows if row.section == "difference from a" and row.name == "delta_m, %")
    assert gain.cells[1].startswith("-")
    told = json.loads(json.dumps(to_json(records, rows)))
    assert told["differences"]["difference from a: depth rmse"][1][0] == pytest.approx(row.intervals[1].value)
    assert not [row for row in compare(records, draws=0) if row.section.startswith("difference")]


def test_images_of_another_set_are_never_compared_though_their_ids_are_the_same(tmp_path):
    for name, digest in (("a", "one"), ("b", "other"), ("c", "one")):
        folder = make(tmp_path / name)
        folder.update_about(tags={"validation_set": digest})
        save(folder.image_sums_file(30), 0.1, 60)
    rows = compare(read_folders([tmp_path]), baseline="a")
    assert {row.cells[1:] for row in rows if row.name == "depth rmse"} == {("-", "+0 [+0, +0] within noise")}


def test_a_metric_that_the_meter_does_not_know_has_no_difference(tmp_path):
    file = save(tmp_path / "a.npz", 0.1, 60)
    found = differences([file, file], [Headline("depth", "brightness", True)], 0)
    assert found == {"depth": [None, None], "delta_m": [None, None]}


def test_sums_of_no_image_say_nothing(tmp_path):
    file = str(ImageSums().save(tmp_path / "a.npz", FACTS))
    assert differences([file, file], TASKS, 0) == {}
