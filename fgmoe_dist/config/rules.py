"""Rules across settings: what no field can say by itself."""

from __future__ import annotations

from fgmoe_dist.config.schema import Config
from fgmoe_dist.errors import UserError


def conflicts(config: Config) -> list[str]:
    """Every contradiction between settings, one line each."""
    experts, precision = config.experts, config.train.precision
    of_experts = experts.conflicts(config.decoder.channels, config.parallel.ep_size, precision)
    return [*of_experts, *_training_conflicts(config)]


def _training_conflicts(config: Config) -> list[str]:
    tasks, stride, size, found = config.tasks, config.decoder.stride, config.data.image_size, []
    if len(set(tasks)) != len(tasks):
        found.append(f"tasks={tasks}: a task is named twice; name each once")
    if any(side % stride for side in size):
        found.append(f"data.image_size={list(size)} is not a multiple of decoder.stride={stride}; change one of them")
    if min(size) <= 0:
        found.append(f"data.image_size={list(size)}: both sides must be positive")
    lowest, highest = config.data.scale_range
    if not 0 < lowest <= highest:
        found.append(f"data.scale_range={[lowest, highest]}: give [lowest, highest], both positive")
    if config.train.precision == "bf16" and config.parallel.zero_stage == 0:
        found.append(
            "train.precision=bf16 needs parallel.zero_stage=1 or 2: at 0 DeepSpeed keeps no moments we could save"
        )
    if config.train.precision == "bf16" and config.encoder_precision != "bf16":
        found.append("train.precision=bf16 casts the whole model; set encoder.precision=bf16 or auto")
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
