"""What a person sees first in MLflow's pages: a view of the experiment, a note of each run, and links to both.

The view is one that MLflow calls shared: a tag of the experiment that its link names. It shows the scores, best first,
with what differs most between runs, and the charts of scores and losses before all others, which MLflow would sort by
the alphabet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fgmoe_dist.files import to_json
from fgmoe_dist.metrics import Scores

VIEW = "fgmoe"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
MEAN = "score/mean"
OPENING = "Decoder **"  # of a note that we wrote
_TRAINING = "workflowType=machine_learning"  # else MLflow opens what it has for language models
_COLUMNS = ("params.`decoder.kind`", "params.`run.seed`", "params.`model.trained`", "attributes.`Created`")
_GROUPS = ("score", "loss", "eval")  # of charts, in this order; MLflow appends the rest


def experiment_link(experiment_id: str) -> str:
    """Behind a server's address."""
    return f"/#/experiments/{experiment_id}/runs?{_TRAINING}&viewStateShareKey={VIEW}"


def run_link(experiment_id: str, run_id: str) -> str:
    return f"/#/experiments/{experiment_id}/runs/{run_id}?{_TRAINING}"


def headline_scores(headlines: Mapping[str, Mapping[str, Any]], scores: Scores) -> dict[str, float]:
    """`score/<task>` of each task's headline metric, and `score/mean`, in which higher is better.

    The mean is of headlines times their scale, with the sign of what is better when lower turned: that by which a run's
    best checkpoint is told. A task without a number is left out.
    """
    found, counted = {}, []
    for task, headline in headlines.items():
        value = scores.get(task, {}).get(headline["metric"])
        if value is not None and value == value:
            found[f"score/{task}"] = value
            counted.append(value * headline.get("scale", 1) * (-1 if headline["lower_is_better"] else 1))
    return {MEAN: sum(counted) / len(counted), **found} if counted else {}


def view(tasks: Sequence[str], earlier: str | None) -> str:
    """The view's tag for an experiment whose runs have these tasks, beside those that `earlier`, its tag now, shows."""
    try:
        before = json.loads(earlier or "{}").get("selectedColumns", [])
    except (ValueError, AttributeError):
        before = []
    scores = dict.fromkeys([f"metrics.`{MEAN}`", *before, *(f"metrics.`score/{task}`" for task in tasks)])
    columns = [*(column for column in scores if column.startswith("metrics.")), *_COLUMNS]
    sections = [
        {"uuid": f"{VIEW}-{name}", "name": name, "display": True, "isReordered": True, "deleted": False}
        for name in _GROUPS
    ]
    first = {"type": "LINE", "uuid": f"{VIEW}-mean", "runsCountToCompare": 10, "metricSectionId": f"{VIEW}-score",
             "deleted": False, "isGenerated": True, "metricKey": MEAN, "selectedMetricKeys": [MEAN]}  # fmt: skip
    return to_json({
        "searchFilter": "", "orderByKey": f"metrics.`{MEAN}`", "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
        "selectedColumns": columns, "compareRunSections": sections, "compareRunCharts": [first],
        "isAccordionReordered": True,
    })  # fmt: skip


def note(about: Mapping[str, Any], settings: Mapping[str, Any], step: int | None, scores: Scores) -> str:
    """What this run is, how good, and how it was made, in Markdown.

    Args:
        about: of `about.json`; `changed` are the settings that are not the default, by key.
        settings: nested, of the run.
        step, scores: of its latest evaluation; None and empty where there is none.
    """
    paragraphs, headlines = [_what(about, settings)], about.get("headlines", {})
    if found := headline_scores(headlines, scores):
        told = ", ".join(
            f"{task} {of['metric']} {found[f'score/{task}']:.4g} ({'lower' if of['lower_is_better'] else 'higher'} is"
            " better)"
            for task, of in headlines.items()
            if f"score/{task}" in found
        )
        paragraphs.append(f"At step {step}: {told}. `{MEAN}`, by which the best checkpoint is told: {found[MEAN]:.4g}.")
    if command := about.get("tags", {}).get("command"):
        paragraphs.append(f"Made by\n\n    {command}")
    if changed := about.get("changed"):
        rows = [f"| `{key}` | {str(value).replace('|', '/')} |" for key, value in changed.items()]
        paragraphs.append("\n".join(["| setting that is not the default | here |", "|---|---|", *rows]))
    return "\n\n".join(paragraphs)


def _what(about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    kind, encoder = settings.get("decoder", {}).get("kind", "?"), settings.get("encoder", {}).get("name", "?")
    told = [f"{OPENING}{kind}** for {', '.join(settings.get('tasks', []))} on frozen {encoder}."]
    if size := about.get("model", {}).get("trained"):
        told.append(f"{size:,} parameters are trained.")
    for found in about.get("data", {}).values():
        told.append(f"Split {found['split']} of {found['name']}: {found['images']:,} images.")
    return " ".join(told)
