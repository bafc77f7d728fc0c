"""Runs beside each other: the settings that differ, the headline scores, size and speed.

Reads run folders or an MLflow store; both hold the same facts (see `run_folder`).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics import Scores
from fgmoe_dist.metrics.bootstrap import DRAWS, Interval
from fgmoe_dist.metrics.delta_m import delta_m
from fgmoe_dist.settings import flatten
from fgmoe_dist.tasks import TASKS
from fgmoe_dist.tracking.believe import GAIN, Headline, differences
from fgmoe_dist.tracking.mlflow_store import find_experiment
from fgmoe_dist.tracking.run_folder import OWN_SETTINGS, RunFolder, runs_in

# What a run recorded beside its settings, and MLflow has among them.
RECORDED = ("model.", "work.", "headlines.", "encoder.source")
PLACE_TAGS = ("git_commit", "git_dirty", "world", "launcher", "device", "torch", "deepspeed")


@dataclass(frozen=True)
class RunRecord:
    """What a comparison needs to know of a run; what it did not record is absent."""

    name: str
    status: str
    settings: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)  # of the last evaluation
    step: int | None = None  # of the last evaluation
    model: Mapping[str, float] = field(default_factory=dict)  # total, trained, ...
    work: Mapping[str, float] = field(default_factory=dict)  # GFLOPs of an image, encoder and decoder apart
    headlines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by task: metric, sign
    images_per_second: float | None = None  # median over the run
    image_sums: str = ""  # the file of what each image added to the scores, where there is one

    @property
    def validation(self) -> str:
        """Digest of the set that it was scored on; empty where it did not say."""
        return self.tags.get("validation_set", "")


@dataclass(frozen=True)
class Row:
    """One quantity over all runs. `best` are the columns to print in bold."""

    section: str
    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    intervals: tuple[Interval | None, ...] = ()  # of a difference, in figures


def read_folders(paths: Iterable[str | Path], unfinished: bool = False) -> list[RunRecord]:
    """Run folders, or folders of run folders, of which unfinished runs are left out unless asked for."""
    records = []
    for path in map(Path, paths):
        for folder in runs_in(path):
            record = read_folder(folder)
            if unfinished or folder.path == path or record.status == "FINISHED":
                records.append(record)
    return records


def read_folder(folder: RunFolder) -> RunRecord:
    """One run folder. UserError where its files are damaged."""
    about, evaluations = folder.about(), folder.evaluations()
    step = max(evaluations, default=None)
    sums = folder.image_sums_file(step) if step is not None else None
    rates = [entry["images_per_second"] for entry in folder.metrics() if entry.get("images_per_second")]
    return RunRecord(
        name=folder.path.resolve().name,
        status=about.get("status", "unknown"),
        settings=_shared({key: str(value) for key, value in flatten(folder.settings()).items()}),
        tags=about.get("tags", {}),
        scores=evaluations.get(step, {}),
        step=step,
        model=about.get("model", {}),
        work=about.get("work", {}),
        headlines=about.get("headlines", {}),
        images_per_second=statistics.median(rates) if rates else None,
        image_sums=str(sums) if sums and sums.is_file() else "",
    )


def read_mlflow(uri: str, experiment: str, unfinished: bool = False) -> list[RunRecord]:
    """The runs of an MLflow experiment, oldest first. UserError if the store or the experiment cannot be read."""
    client, found = find_experiment(uri, experiment)
    try:
        runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"], max_results=1000)
        return [_of_mlflow(client, run) for run in runs if unfinished or run.info.status == "FINISHED"]
    except Exception as error:  # of a store MLflow passes on what its driver, the network or the file system raise
        raise UserError(f"--uri {uri}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def _of_mlflow(client: Any, run: Any) -> RunRecord:
    scores: Scores = defaultdict(dict)
    for name, value in run.data.metrics.items():
        if name.startswith("eval/") and name.count("/") == 2:
            _, task, metric = name.split("/")
            scores[task][metric] = value
    points = client.get_metric_history(run.info.run_id, "images_per_second")
    recorded = {section: _below(section, run.data.params) for section in ("model", "work", "headlines")}
    any_score = next((f"eval/{task}/{name}" for task, values in scores.items() for name in values), None)
    steps = [point.step for point in client.get_metric_history(run.info.run_id, any_score)] if any_score else []
    return RunRecord(
        name=run.info.run_name,
        status=run.info.status,
        settings=_shared({key: value for key, value in run.data.params.items() if not key.startswith(RECORDED)}),
        tags=_shared({key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}),
        scores=dict(scores),
        step=max(steps, default=None),
        model={key: float(value) for key, value in recorded["model"].items()},
        work={key: float(value) for key, value in recorded["work"].items()},
        headlines=_headlines(recorded["headlines"]),
        images_per_second=statistics.median(point.value for point in points) if points else None,
    )


def _shared(values: Mapping[str, str]) -> dict[str, str]:
    """Without what every run has its own of."""
    return {key: value for key, value in values.items() if key not in OWN_SETTINGS}


def _below(section: str, parameters: Mapping[str, str]) -> dict[str, str]:
    above = f"{section}."
    return {key.removeprefix(above): value for key, value in parameters.items() if key.startswith(above)}


def _headlines(parameters: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Those of `about.json`, of the tasks that have the first two parts: metric, lower_is_better, scale."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in parameters.items():
        task, _, part = key.rpartition(".")
        found[task][part] = value == "True" if part == "lower_is_better" else float(value) if part == "scale" else value
    return {task: parts for task, parts in found.items() if parts.keys() >= {"metric", "lower_is_better"}}


def compare(
    records: Sequence[RunRecord], every_metric: bool = False, baseline: str = "", draws: int = DRAWS
) -> list[Row]:
    """The rows of the table.

    Args:
        every_metric: all metrics of the evaluation, else each task's headline.
        baseline: the run that gains are over, by name; by default the one of decoder single_task, or else the first.
        draws: of the images, by which differences from the baseline are believed or not; 0: no such rows.

    Scores of several validation sets are not marked as best, and give no gains. UserError for an unknown baseline.
    """
    base = _find_baseline(records, baseline)
    rows = [Row("run", "status", tuple(record.status for record in records))]
    rows.append(Row("run", "evaluated at step", tuple(_text(record.step) for record in records)))
    rows += _differing("setting", [record.settings for record in records])
    tags = [{key: record.tags.get(key, "-") for key in PLACE_TAGS} for record in records]
    for found in tags:
        found["git_commit"] = found["git_commit"][:10]
    rows += _differing("place", tags)
    tasks = [_headline(name, records) for name in dict.fromkeys(name for record in records for name in record.scores)]
    rows += _score_rows(records, tasks, every_metric, base)
    rows += _difference_rows(records, tasks, base, draws)
    sizes = dict.fromkeys(key for record in records for key in record.model)
    rows += [Row("parameters", key, tuple(_text(record.model.get(key)) for record in records)) for key in sizes]
    rows += [
        Row("GFLOPs an image", part, tuple(_text(record.work.get(f"{part}_gflops")) for record in records))
        for part in ("encoder", "decoder") if any(record.work for record in records)
    ]  # fmt: skip
    rates = [record.images_per_second for record in records]
    rows.append(Row("speed", "images per second", tuple(_text(rate) for rate in rates), _best(rates, lower=False)))
    return rows


def to_markdown(records: Sequence[RunRecord], rows: Sequence[Row]) -> str:
    """A table with a column per run, aligned so that it also reads as plain text."""
    lines = [["", *(record.name for record in records)]]
    for row in rows:
        marked = [f"**{cell}**" if i in row.best else cell for i, cell in enumerate(row.cells)]
        lines.append([f"{row.section}: {row.name}", *marked])
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]]) + "\n"


def to_json(records: Sequence[RunRecord], rows: Sequence[Row]) -> dict[str, Any]:
    """Every record in full, which settings differ, and the differences: of each run value, low and high, or null."""
    differing = [row.name for row in rows if row.section == "setting"]
    return {
        "runs": [asdict(record) for record in records],
        "settings_that_differ": differing,
        "differences": {f"{row.section}: {row.name}": row.intervals for row in rows if row.intervals},
    }


# Sections whose keys depend on a kind: that a run of another kind has no such key says nothing more.
OF_A_KIND = ("decoder.", "experts.", "train.weighting.")


def _differing(section: str, values: Sequence[Mapping[str, str]]) -> list[Row]:
    keys = dict.fromkeys(key for mapping in values for key in mapping)
    rows = [Row(section, key, tuple(mapping.get(key, "-") for mapping in values)) for key in keys]
    return [row for row in rows if len(set(row.cells) - ({"-"} if row.name.startswith(OF_A_KIND) else set())) > 1]


def _find_baseline(records: Sequence[RunRecord], name: str) -> int:
    names = [record.name for record in records]
    if name and names.count(name) != 1:
        which = "is none of the runs" if name not in names else "is the name of several runs"
        raise UserError(f"--baseline {name}: {which}; name one of {', '.join(dict.fromkeys(names))}")
    if name:
        return names.index(name)
    single = [i for i, record in enumerate(records) if record.settings.get("decoder.kind") == "single_task"]
    return single[0] if len(single) == 1 else 0


def scored_alike(records: Sequence[RunRecord]) -> bool:
    """Whether all were scored on one validation set, as far as they say."""
    return len({record.validation for record in records if record.validation and record.scores}) < 2


def _score_rows(
    records: Sequence[RunRecord], tasks: Sequence[Headline], every_metric: bool, baseline: int
) -> list[Row]:
    alike = scored_alike(records)
    rows = []
    for task in tasks:
        known = dict.fromkeys(name for record in records for name in record.scores.get(task.name, {}))
        for metric in [task.metric, *(name for name in known if every_metric and name != task.metric)]:
            values = [record.scores.get(task.name, {}).get(metric) for record in records]
            # The sign of other metrics is not declared: none is marked.
            marked = metric == task.metric and task.lower_is_better is not None
            sign = (" (lower is better)" if task.lower_is_better else " (higher is better)") if marked else ""
            best = _best(values, task.lower_is_better) if marked and alike else frozenset()
            rows.append(Row("score", f"{task.name} {metric}{sign}", tuple(_text(value) for value in values), best))
    if not alike:
        sets = tuple(record.validation[:8] or "-" for record in records)
        return [*rows, Row("score", "validation set (no best among several)", sets)]
    return rows + _gain_row(records, tasks, baseline)


def _gain_row(records: Sequence[RunRecord], tasks: Sequence[Headline], baseline: int) -> list[Row]:
    """Delta_m of every run over the baseline; a dash where one of the two lacks one of the scores."""
    tasks = [task for task in tasks if task.lower_is_better is not None]
    headlines = [{task.name: record.scores.get(task.name, {}).get(task.metric) for task in tasks} for record in records]
    known = [bool(tasks) and all(value is not None for value in scores.values()) for scores in headlines]
    if len(records) < 2 or not known[baseline]:
        return []
    signs = {task.name: task.lower_is_better for task in tasks}
    gains = []
    for index, (scores, complete) in enumerate(zip(headlines, known)):
        try:
            gain = f"{delta_m(scores, headlines[baseline], signs):+.2f} %" if complete else "-"
        except UserError:  # a score of 0 or NaN has no relative gain
            gain = "-"
        gains.append("0" if index == baseline else gain)
    return [Row("score", f"mean gain over {records[baseline].name} (delta_m)", tuple(gains))]


def _difference_rows(records: Sequence[RunRecord], tasks: Sequence[Headline], baseline: int, draws: int) -> list[Row]:
    """How far each run is from the baseline, and between what 95 % of the draws of the images lie."""
    if len(records) < 2:
        return []
    # Images of another set may have the same ids.
    files = [record.image_sums if scored_alike([record, records[baseline]]) else "" for record in records]
    found = differences(files, tasks, baseline, draws)
    names = {task.name: f"{task.name} {task.metric}" for task in tasks} | {GAIN: f"{GAIN}, %"}
    return [
        Row(
            f"difference from {records[baseline].name}",
            names[key],
            tuple("0" if i == baseline else _difference_text(one) for i, one in enumerate(intervals)),
            intervals=tuple(intervals),
        )
        for key, intervals in found.items()
    ]


def _difference_text(found: Interval | None) -> str:
    if found is None:
        return "-"
    told = f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
    return told if found.is_clear else f"{told} within noise"


def _headline(name: str, records: Sequence[RunRecord]) -> Headline:
    """What a run recorded of its task; for runs that did not, what is known of the task by its name."""
    recorded = [record.headlines[name] for record in records if name in record.headlines]
    if recorded:
        return Headline(name, recorded[0]["metric"], recorded[0]["lower_is_better"])
    if name in TASKS:
        return Headline(name, TASKS[name].headline, TASKS[name].lower_is_better)
    metrics = [metric for record in records for metric in record.scores.get(name, ())]
    return Headline(name, metrics[0] if metrics else "", None)


def _best(values: Sequence[float | None], lower: bool) -> frozenset[int]:
    """Columns with the best value; none where fewer than two runs have one or all are equal."""
    known = [value for value in values if value is not None and value == value]
    if len(known) < 2 or len(set(known)) == 1:
        return frozenset()
    best = min(known) if lower else max(known)
    return frozenset(i for i, value in enumerate(values) if value == best)


def _text(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
