"""Published results beside one's own runs, with what differs in how they were obtained (`published.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgmoe_dist.tasks import TASKS
from fgmoe_dist.tracking.compare import RunRecord
from fgmoe_dist.yaml_files import read_yaml

FILE = Path(__file__).with_name("published.yaml")
SETS = {
    "nyud": ("semseg", "depth", "normals", "edge"),
    "pascal": ("semseg", "human_parts", "sal", "normals", "edge"),
}


def systems(data_set: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The published systems of `nyud` or `pascal`, best semseg last, and what each protocol's name means."""
    known = read_yaml(FILE)
    found = [system for system in known["systems"] if system["set"] == data_set]
    return sorted(found, key=lambda system: system["scores"]["semseg"]), known["protocols"]


def table(records: Sequence[RunRecord], data_set: str) -> str:
    """A line a run, then a line a published system, and below what differs in their protocols, in Markdown."""
    tasks, (published, protocols) = SETS[data_set], systems(data_set)
    headlines = [f"{task} {TASKS[task].headline}" for task in tasks]
    heads = ["system", "encoder", "trained parameters", *headlines, "differs"]
    lines = [[record.name, record.settings.get("encoder.name", "-"), _number(record.model.get("trained")),
              *_scores({t: record.scores.get(t, {}).get(TASKS[t].headline) for t in tasks}, tasks), ""]
             for record in records]  # fmt: skip
    used = [name for name in protocols if any(name in system["protocol"] for system in published)]
    marks = {name: f"[{number}]" for number, name in enumerate(used, 1)}
    for each in published:
        differs = " ".join(marks[name] for name in each["protocol"])
        size = _number(each.get("trained_parameters"))
        lines.append([each["system"], each["encoder"], size, *_scores(each["scores"], tasks), differs])
    text = [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)]
    notes = [f"{mark} {protocols[name]}" for name, mark in marks.items()]
    sources = sorted({f"{each['system']}: {each['source']}" for each in published})
    return "\n".join([*text, "", *notes, "", "Sources. " + "; ".join(sources) + "."]) + "\n"


def _scores(scores: Mapping[str, float | None], tasks: Sequence[str]) -> list[str]:
    return ["-" if (value := scores.get(task)) is None else f"{value:.4g}" for task in tasks]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{int(float(value)):,}"
