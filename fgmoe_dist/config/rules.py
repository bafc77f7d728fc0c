"""Rules across settings: what no field can say by itself."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

from fgmoe_dist.config.schema import Config
from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import HINT
from fgmoe_dist.tasks import TASKS


def conflicts(config: Config, defined: Iterable[str] = ()) -> list[str]:
    """Every contradiction between settings, one line each. `defined` are tasks known besides those of `data.train`."""
    around = config.surroundings()
    return [*config.decoder.conflicts(around), *_task_conflicts(config, defined), *_training_conflicts(config)]


def _task_conflicts(config: Config, defined: Iterable[str]) -> list[str]:
    tasks, found = config.tasks, []
    if len(set(tasks)) != len(tasks):
        found.append(f"tasks={tasks}: a task is named twice; name each once")
    known = list(dict.fromkeys([*TASKS, *defined, *_defined_tasks(config.data.train)]))
    if _is_local(config.data.train):
        named = {f"tasks.{i}": name for i, name in enumerate(tasks)}
        named |= {f"train.loss_weights.{name}": name for name in config.train.loss_weights}
        found += [_unknown_task(key, name, known) for key, name in named.items() if name not in known]
    return found


def _unknown_task(key: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, and those that data.train defines"
    return f"{key}={name!r}: no such task; {hint}{HINT}"


def _is_local(where: str) -> bool:
    """Whether the index of these shards can be looked into now; the tasks of others are known once they are read."""
    return not where or not any(sign in where for sign in ("://", "pipe:", "{"))


def _defined_tasks(where: str) -> list[str]:
    """Tasks that a folder of shards defines itself; none where there is no such folder yet."""
    try:
        return list(json.loads((Path(where) / "index.json").read_text())["definitions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _training_conflicts(config: Config) -> list[str]:
    size, found = config.data.image_size, []
    if min(size) <= 0:
        found.append(f"data.image_size={list(size)}: both sides must be positive")
    lowest, highest = config.data.scale_range
    if not 0 < lowest <= highest:
        found.append(f"data.scale_range={[lowest, highest]}: give [lowest, highest], both positive")
    if config.train.precision == "bf16" and config.parallel.zero_stage == 0:
        found.append(
            "train.precision=bf16 needs parallel.zero_stage=1 or 2: at 0 DeepSpeed keeps no moments we could save"
        )
    return found


def check_world(config: Config, world: int) -> None:
    """What can only be checked once the number of ranks is known. Raises UserError."""
    problems = []
    ep_size, train = config.parallel.ep_size, config.train
    if world % ep_size:
        problems.append(
            f"parallel.ep_size={ep_size} does not divide the {world} rank(s) started; start a multiple of it"
        )
    together = train.micro_batch_size * world
    if train.batch_size % together:
        problems.append(
            f"train.batch_size={train.batch_size} is not a multiple of train.micro_batch_size={train.micro_batch_size}"
            f" x {world} ranks; the nearest is {max(1, round(train.batch_size / together)) * together}"
        )
    if problems:
        raise UserError(list_problems("the ranks started do not fit", problems))


def list_problems(origin: str, problems: list[str]) -> str:
    """All mistakes as one message."""
    return problems[0] if len(problems) == 1 else f"{origin}: {len(problems)} mistakes: " + "; ".join(problems)
