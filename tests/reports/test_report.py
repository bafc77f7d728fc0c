"""The report: what it says is what was scored, it needs no other file, and its charts are true to their numbers."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fgmoe_dist.drawing import charts
from fgmoe_dist.evaluation.score_files import Scored, score
from fgmoe_dist.reports.examples import places, ranking
from fgmoe_dist.reports.page import write_report
from fgmoe_dist.tasks import create_tasks

SHAPE = (24, 32)
TASKS = ("semseg", "human_parts", "sal", "normals", "depth", "edge")
INFO = SimpleNamespace(
    dataset="mine",
    tasks=TASKS,
    classes={"semseg": ["wall", "<b>&floor", "bed"], "human_parts": ["background", "head"]},
    boundary_max_dist=0.05,
)


def label(id_):
    rng = np.random.default_rng(int(id_))
    normals = rng.normal(size=(*SHAPE, 3)).astype(np.float32)
    boundary = np.zeros(SHAPE, np.uint8)
    boundary[12] = 1
    return {
        "id": id_,
        "image": rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8),
        "semseg": rng.integers(0, 2, SHAPE).astype(np.uint8),
        "human_parts": np.full(SHAPE, 255 if id_ == "3" else 1, np.uint8),
        "sal": rng.integers(0, 2, SHAPE).astype(np.uint8),
        "depth": np.full(SHAPE, 2, np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "boundary": boundary,
    }


@dataclass(frozen=True)
class MemoryPart:
    ids: tuple[str, ...]

    def samples(self, tasks):
        return map(label, self.ids)


@pytest.fixture
def scored(tmp_path):
    """Four images; the depth of image k is wrong by k metres, everything else is random or perfect."""
    for task in TASKS:
        (tmp_path / task).mkdir()
    for id_ in "1234":
        truth, other = label(id_), label(str(int(id_) + 5))
        for task in ("semseg", "human_parts"):
            Image.fromarray(np.minimum(truth[task], 1)).save(tmp_path / task / f"{id_}.png")
        Image.fromarray(255 * truth["sal"]).save(tmp_path / "sal" / f"{id_}.png")
        Image.fromarray(255 * truth["boundary"]).save(tmp_path / "edge" / f"{id_}.png")
        np.save(tmp_path / "normals" / f"{id_}.npy", other["normals"])
        np.save(tmp_path / "depth" / f"{id_}.npy", truth["depth"] + np.float32(int(id_)))
    tasks, parts = create_tasks(TASKS, INFO), [MemoryPart(("1", "2", "3")), MemoryPart(("4",))]
    return tasks, parts, score(parts, tasks, tmp_path)


class Page(HTMLParser):
    """Every tag opened and closed in order; the sources of pictures; the text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.sources, self.words, self.links = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for key, value in attributes if key == "src"]
        self.links += [value for key, value in attributes if key == "href"]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_the_page_stands_alone_and_says_what_was_scored(scored, tmp_path):
    tasks, parts, result = scored
    baseline, gains = {task.name: {task.headline: 2.0} for task in tasks}, {task.name: -1.5 for task in tasks}
    path = write_report(
        tmp_path / "new" / "report",
        tasks,
        result,
        parts,
        tmp_path,
        "Scores of <mine>",
        "4 images",
        baseline,
        gains,
    )
    html = path.read_text()
    page = Page(html)
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and "<link" not in html
    assert all(source.startswith("data:image/") for source in page.sources)
    assert page.links == [f"#{task}" for task in TASKS]
    # best, median and worst of each task with image, prediction and truth; two scales of probability, one of depth
    assert len(page.sources) == 3 * 3 * len(TASKS) + 3
    assert "Scores of <mine>" in page.words and "<b>&floor" in page.words  # and not as tags
    scores = result.scores()
    for task in tasks:
        assert f"{scores[task.name][task.headline]:.4g}" in page.words
    assert page.words.count("-1.50 %") == len(TASKS) + 1
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_without_a_baseline_there_is_no_gain(scored, tmp_path):
    tasks, parts, result = scored
    page = Page(write_report(tmp_path / "r", tasks, result, parts, tmp_path, "a", "b").read_text())
    assert "gain" not in page.words


def test_images_are_ranked_by_their_own_score(scored):
    tasks, _, result = scored
    order = {task.name: [id_ for id_, _ in ranking(task, result.meters[task.name], result)] for task in tasks}
    assert order["depth"] == ["1", "2", "3", "4"]  # wrong by 1, 2, 3, 4 m
    assert order["human_parts"] == ["1", "2", "4"]  # the third has no labelled pixel; equals go by id
    values = [value for _, value in ranking(tasks[3], result.meters["normals"], result)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    "count, expected",
    [(0, {}), (1, {0: "best"}), (2, {0: "best", 1: "worst"}), (3, {0: "best", 1: "median", 2: "worst"}),
     (8, {0: "best", 3: "median", 7: "worst"})],
)  # fmt: skip
def test_places(count, expected):
    assert places(count) == expected


def test_a_set_without_labels_has_a_page_too(scored, tmp_path):
    tasks, parts, result = scored
    empty = Scored({task: meter.empty() for task, meter in result.meters.items()})
    page = Page(write_report(tmp_path / "r", tasks, empty, parts, tmp_path, "a", "b").read_text())
    assert page.words.count("nan") > len(TASKS) and not page.sources


# ---- charts ----


def shapes(svg, tag, kind):
    return [e for e in ElementTree.fromstring(svg).iter(tag) if e.get("class") == kind]


def test_bars_are_as_long_as_their_values():
    svg = charts.bars([("a", 50.0), ("b", 100.0), ("c", float("nan"))], "t")
    longer, shorter = (float(bar.get("width")) for bar in shapes(svg, "rect", "bar"))
    assert shorter == pytest.approx(longer / 2, rel=0.01)
    words = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert words == ["b", "100.0", "a", "50.0", "c", "not in this set"]


def test_the_matrix_shows_every_share():
    svg = charts.matrix(np.array([[0.75, 0.25], [0.0, 1.0]]), ["a", "b"], "t")
    assert [float(cell.get("opacity")) for cell in shapes(svg, "rect", "hit")] == pytest.approx([0.87, 1], abs=0.01)
    (miss,) = shapes(svg, "rect", "miss")
    assert float(miss.get("opacity")) == 0.5 and miss[0].text == "a seen as b: 25.0 %"


@pytest.mark.parametrize("beta_2", [1.0, 0.3])
def test_lines_of_equal_f_are_that(beta_2):
    svg = charts.precision_recall([1, 0.5], [0, 1], (0.5, 1.0), "best", "t", beta_2)
    axes = charts.Axes((0, 100), (0, 100))
    lines = shapes(svg, "polyline", "guide")
    assert len(lines) == 9
    for f, line in zip(np.arange(1, 10) / 10, lines):
        x, y = np.array([p.split(",") for p in line.get("points").split()], float).T
        recall, precision = (
            (x - axes.x(0)) / (axes.x(1) - axes.x(0)) / 100,
            (y - axes.y(0)) / (axes.y(1) - axes.y(0)) / 100,
        )
        np.testing.assert_allclose((1 + beta_2) * precision * recall / (beta_2 * precision + recall), f, atol=0.01)


def test_the_caption_names_the_worst_confusion(scored):
    tasks, _, result = scored
    meter = result.meters["semseg"].empty()
    confusion = np.array([[90, 10, 0], [0, 5, 15], [0, 0, 40]], float)
    meter.merge(confusion.ravel())
    bars, matrix = tasks[0].figures(meter)
    assert "<b>&floor seen as bed 75 %, wall seen as <b>&floor 10 %." in matrix.caption
    assert re.findall(r">(\d+\.\d)<", bars.chart) == ["90.0", "72.7", "16.7"]
