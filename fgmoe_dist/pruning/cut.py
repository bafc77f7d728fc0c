"""The tensors of a smaller model, from those of a checkpoint: without some routed experts, or of one task alone.

Names and axes say what is to be done: `blocks.B.experts.OWNER.EXPERT.WEIGHT` is a routed expert's, a list `NAME.T.`
has an entry a task, and a stacked parameter whose name ends in axes that begin with T has a row a task. Moments go the
way of their weights, so that training goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fgmoe_dist.config import Config
from fgmoe_dist.errors import UserError
from fgmoe_dist.pruning.choose import Kept

_EXPERT = re.compile(r"blocks\.(?P<block>\d+)\.experts\.(?P<owner>\w+)\.(?P<expert>\d+)\.(?P<weight>.+)")
_LISTS = re.compile(r"(?P<list>mixers|heads)\.(?P<task>\d+)\.(?P<rest>.+)")
_BY_TASK = re.compile(r"_T[A-Z0-9]*\.(weight|exp_avg|exp_avg_sq)$")
_ADAPTER = re.compile(r"aggregator\.(down|up)\.")


def tensors_of(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint by its name."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - no dict, cannot be iterated
                yield name, file.get_tensor(name)


def without_experts(tensors: Iterator[tuple[str, Tensor]], kept: Kept) -> dict[str, Tensor]:
    """Those of the experts that are `kept`, and all that is no expert's."""
    found = {}
    for name, value in tensors:
        expert = _EXPERT.fullmatch(name)
        owner = 0 if expert is None or expert["owner"] == "shared" else int(expert["owner"])
        if expert is None or int(expert["expert"]) in kept[int(expert["block"])][owner]:
            found[name] = value
    return found


def check_one_task(config: Config, task: str, option: str) -> None:
    """UserError where one task cannot be cut out of such a model."""
    if task not in config.tasks:
        raise UserError(f"{option}={task}: the model predicts {', '.join(config.tasks)}; name one of these")
    if config.experts.crosses_tasks:
        raise UserError(f"{option}={task}: with experts.global_input=tasks it reads the features of all tasks")
    if config.experts.closed_share:
        raise UserError(
            f"{option}={task}: which experts experts.closed_share={config.experts.closed_share} closes is drawn for all"
            " tasks together"
        )


def of_one_task(tensors: Mapping[str, Tensor], config: Config, task: str) -> dict[str, Tensor]:
    """Those of a model with this task alone."""
    index, tasks, found = config.tasks.index(task), len(config.tasks), {}
    for name, value in tensors.items():
        expert, listed = _EXPERT.fullmatch(name), _LISTS.fullmatch(name)
        if expert is not None:
            if expert["owner"] == "shared":
                found[name] = value
            elif int(expert["owner"]) == index:
                found[f"blocks.{expert['block']}.experts.0.{expert['expert']}.{expert['weight']}"] = value
        elif listed is not None:
            if int(listed["task"]) == index:
                found[f"{listed['list']}.0.{listed['rest']}"] = value
        elif _BY_TASK.search(name) and value.shape[0] == tasks:
            found[name] = value[index : index + 1].clone()
        elif _ADAPTER.match(name):
            found[name] = value.chunk(tasks)[index].clone()
        else:
            found[name] = value
    return found


def changes(config: Config, task: str, kept: Kept) -> dict[str, Any]:
    """What of the configuration is another in the model with this task alone, whose experts of all tasks are `kept`."""
    if config.experts.bank == "task":
        kept = [[block[config.tasks.index(task)]] for block in kept]
    return {"tasks": [task], "experts": {"kept": kept}, "train": {"weighting": {"kind": "fixed"}}}
