"""Rules across settings: what no field can say by itself."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from fgmoe_dist.config.schema import Config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.settings import STOCK_ROUTING
from fgmoe_dist.tasks import TASKS


def conflicts(config: Config) -> list[str]:
    """Every contradiction between settings, one line each."""
    around = config.surroundings()
    experts = [*_placement_conflicts(config), *_expert_conflicts(config)] if "experts" in config.sections() else []
    return [*experts, *config.decoder.conflicts(around), *_task_conflicts(config), *_training_conflicts(config)]


def _task_conflicts(config: Config) -> list[str]:
    tasks, found = config.tasks, []
    if len(set(tasks)) != len(tasks):
        found.append(f"tasks={tasks}: a task is named twice; name each once")
    known = [*TASKS, *_defined_tasks(config.data.train)]
    if _is_local(config.data.train):
        named = {f"tasks.{i}": name for i, name in enumerate(tasks)}
        named |= {f"train.loss_weights.{name}": name for name in config.train.loss_weights}
        found += [_unknown_task(key, name, known) for key, name in named.items() if name not in known]
    return found


def _unknown_task(key: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, and those that data.train defines"
    return f"{key}={name!r}: no such task; {hint}"


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


def _placement_conflicts(config: Config) -> list[str]:
    """Where experts live, and which of them a token may reach."""
    experts, ep_size, groups, found = config.experts, config.parallel.ep_size, config.expert_groups, []
    if experts.hidden % experts.split:
        found.append(f"experts.hidden={experts.hidden} is not divisible by experts.split={experts.split}")
    if experts.top_k > experts.routed:
        found.append(
            f"experts.top_k={experts.top_k} exceeds the {experts.routed} routed experts (count x split); lower it"
        )
    if experts.routed % ep_size:
        found.append(
            f"parallel.ep_size={ep_size} does not divide the {experts.routed} routed experts a task (count x split)"
        )
    if experts.groups and experts.routed % experts.groups:
        found.append(
            f"experts.groups={experts.groups} does not divide the {experts.routed} routed experts a task; choose one"
            " that does"
        )
    elif experts.groups % ep_size:
        found.append(
            f"experts.groups={experts.groups} is not a multiple of parallel.ep_size={ep_size}:"
            f" a group would lie on two ranks; set experts.groups={ep_size}"
        )
    if experts.groups and experts.max_ranks_per_token > experts.groups:
        found.append(
            f"experts.max_ranks_per_token={experts.max_ranks_per_token} limits nothing: there are"
            f" {experts.groups} groups; lower it, or set it to 0"
        )
    reached = min(experts.max_ranks_per_token, groups) * (experts.routed // groups)
    if 0 < reached < experts.top_k <= experts.routed:
        found.append(
            f"experts.max_ranks_per_token={experts.max_ranks_per_token} leaves a token {reached} of the"
            f" {experts.routed} routed experts, fewer than experts.top_k={experts.top_k}; raise it or lower top_k"
        )
    return found


def _expert_conflicts(config: Config) -> list[str]:
    """What routers, backends and kernels cannot do."""
    experts, train, found = config.experts, config.train, []
    if experts.shared_gate == "joint" and experts.score != "softmax":
        found.append("experts.shared_gate=joint is one softmax; set experts.score=softmax")
    if experts.kernel == "grouped":
        multiple = 8 if train.precision == "bf16" else 4
        for key, width in {"decoder.channels": config.decoder.channels, "experts.hidden": experts.fine_hidden}.items():
            if width % multiple:
                found.append(
                    f"experts.kernel=grouped takes rows of whole 16 bytes, and {key} gives {width} numbers in"
                    f" {train.precision}; make it a multiple of {multiple}, or set experts.kernel=auto"
                )
    if experts.backend != "fused":
        for key, wanted in STOCK_ROUTING.items():
            if (value := getattr(experts, key)) != wanted:
                found.append(f"experts.{key}={value} needs experts.backend=fused; the stock layers have only {wanted}")
    if experts.backend == "fairscale" and (experts.top_k != 2 or not experts.renormalise):
        found.append(
            "experts.backend=fairscale has a renormalised top-2 gate only; set experts.top_k=2 experts.renormalise=true"
        )
    if experts.backend == "fairscale" and train.precision != "fp32":
        found.append("experts.backend=fairscale computes in fp32 only; set train.precision=fp32")
    return found
