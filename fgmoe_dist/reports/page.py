"""The page itself: a template filled with what was scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fgmoe_dist import __version__
from fgmoe_dist.drawing import charts
from fgmoe_dist.drawing.figures import Figure
from fgmoe_dist.evaluation.score_files import Part, Scored
from fgmoe_dist.files import write_atomically
from fgmoe_dist.metrics.delta_m import mean_gain
from fgmoe_dist.metrics.meter import Meter, Scores
from fgmoe_dist.outputs import REPORT, claim
from fgmoe_dist.reports.examples import Examples, examples, places, ranking
from fgmoe_dist.tasks import Task


@dataclass(frozen=True)
class Section:
    """A task's part of the page."""

    name: str
    title: str
    headline: str
    better: str
    value: str
    image_metric: str
    figures: Sequence[Figure]
    examples: Examples


@dataclass(frozen=True)
class Row:
    """A line of the table, in words."""

    headline: bool
    task: str
    metric: str
    better: str
    value: str
    single: str
    gain: str


def write_report(
    folder: Path,
    tasks: Sequence[Task],
    scored: Scored,
    parts: Sequence[Part],
    predictions: Path,
    title: str,
    subtitle: str,
    baseline: Scores | None = None,
    gains: dict[str, float] | None = None,
) -> Path:
    """Write `folder/index.html`, which needs no other file; its path.

    Args:
        parts, predictions: what was scored; a few images are read again to be shown.
        baseline, gains: single-task scores and each task's `relative_gains` over them, or neither.
    """
    environment = Environment(
        loader=PackageLoader("fgmoe_dist.reports", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        version=__version__,
        delta_m=mean_gain(gains) if gains else None,
        table=[row for task in tasks for row in _rows(task, scored, baseline or {}, gains)],
        tasks=[_section(task, scored, parts, predictions) for task in tasks],
    )
    claim(folder, "--report", REPORT, mark=False)
    return write_atomically(folder / "index.html", html)


def _rows(task: Task, scored: Scored, baseline: Scores, gains: dict[str, float] | None) -> list[Row]:
    values, single = scored.meters[task.name].compute(), baseline.get(task.name, {})
    rows = []
    for metric in sorted(values, key=lambda name: name != task.headline):
        is_headline = metric == task.headline
        gain = f"{gains[task.name]:+.2f} %" if gains and is_headline else ""
        unit = task.unit_of(metric)
        row = Row(
            headline=is_headline,
            task=task.title if is_headline else "",
            metric=f"{metric}, {unit}" if unit else metric,
            better=_better(task) if is_headline else "",
            value=f"{values[metric]:.4g}",
            single="" if single.get(metric) is None else f"{single[metric]:.4g}",
            gain=gain,
        )
        rows.append(row)
    return rows


def _section(task: Task, scored: Scored, parts: Sequence[Part], predictions: Path) -> Section:
    meter = scored.meters[task.name]
    ranked = ranking(task, meter, scored)
    return Section(
        name=task.name,
        title=task.title,
        headline=task.headline,
        better=_better(task),
        value=f"{meter.compute()[task.headline]:.4g}",
        image_metric=meter.image_metric,
        figures=_figures(task, meter, ranked) if ranked else [],
        examples=examples(task, meter, ranked, parts, predictions),
    )


def _figures(task: Task, meter: Meter, ranked: Sequence[tuple[str, float]]) -> list[Figure]:
    """In an order that fills two columns evenly."""
    drawn = task.figures(meter)
    return [*drawn[:1], _spread(meter, ranked), *drawn[1:]]


def _spread(meter: Meter, ranked: Sequence[tuple[str, float]]) -> Figure:
    values = [value for _, value in ranked]
    marks = {place: f"{word} {values[place]:.4g}" for place, word in places(len(values)).items()}
    chart = charts.ranked(values, marks, meter.image_metric, f"{meter.image_metric} of each image")
    return Figure(chart, f"{meter.image_metric} of each of the {len(values)} images with a label, best to worst.")


def _better(task: Task) -> str:
    return "lower" if task.lower_is_better else "higher"
