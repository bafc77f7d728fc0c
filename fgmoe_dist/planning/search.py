"""The placements of a configuration on so many ranks, what each costs, and the one to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

from fgmoe_dist.config import Config, build_config, check_world
from fgmoe_dist.errors import UserError
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.memory import memory
from fgmoe_dist.planning.placement import Placement
from fgmoe_dist.planning.profile import Machine
from fgmoe_dist.planning.times import Part, predict, total
from fgmoe_dist.planning.traffic import Sent, traffic

# Two predictions closer than this are the same; the smaller ep_size then has less traffic and fewer ways to fail.
SAME = 0.02
LINKS = ("far", "near")  # the slower first


@dataclass(frozen=True)
class Candidate:
    """One ep_size and what a rank needs with it."""

    placement: Placement
    memory: dict[str, float]  # bytes by use
    traffic: list[Sent]  # of a step
    parts: Optional[list[Part]]  # of a step; None where no machine was given
    fits: bool

    @property
    def ep_size(self) -> int:
        return self.placement.ep_size

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def seconds(self) -> Optional[float]:
        return None if self.parts is None else total(self.parts)


@dataclass(frozen=True)
class Plan:
    candidates: list[Candidate]
    chosen: Candidate
    why: str
    limit_bytes: Optional[float]  # of memory per rank; None: unknown
    left_out: dict[int, str]  # by ep_size that ranks and experts would allow: why the configuration does not


def make_plan(
    config: Config,
    count: Callable[[Config], Counts],
    nodes: int,
    gpus: int,
    ep_size: Optional[int] = None,
    machine: Optional[Machine] = None,
    memory_bytes: Optional[float] = None,
    imbalance: float = 1.0,
) -> Plan:
    """Costs of every possible ep_size, or of `ep_size` alone, on `nodes` x `gpus` ranks; the best that fits is chosen.

    Times need a `machine`; `memory_bytes`, a rank's, are its unless given. `count` (`trace.count`) takes seconds, so
    mistakes come before it. UserError where nothing is possible or fits.
    """
    _, left_out = ep_sizes(config, nodes, gpus, ep_size)
    if machine is not None:
        check_machine(machine, config, nodes, gpus)
    limit = memory_bytes or (machine.memory_per_rank(gpus) if machine else None)

    def costs(config: Config, counts: Counts) -> list[Candidate]:
        sizes, _ = ep_sizes(config, nodes, gpus, ep_size)
        return [_cost(config, counts, Placement(nodes, gpus, size), machine, limit, imbalance) for size in sizes]

    counts = count(config)
    candidates = costs(config, counts)
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        raise UserError(f"{_nothing_fits(candidates, limit)}; {_cure(config, counts, count, costs)}")
    chosen, why = _choose(fitting, len(candidates), ep_size is not None)
    return Plan(candidates, chosen, why, limit, left_out)


def ep_sizes(config: Config, nodes: int, gpus: int, wanted: Optional[int] = None) -> tuple[list[int], dict[int, str]]:
    """The ep_sizes that `nodes` x `gpus` ranks and the experts allow; those that only other settings forbid, and why.

    UserError if `wanted` is not among the first.
    """
    for option, value in (("--nodes", nodes), ("--gpus-per-node", gpus)):
        if value < 1:
            raise UserError(f"{option} {value}: must be 1 or more")
    if config.routed.experts.backend != "fused":
        raise UserError(
            f"experts.backend={config.routed.experts.backend}: only the fused backend can be planned;"
            f" add --set experts.backend=fused"
        )
    world, routed, possible, left_out = nodes * gpus, config.routed.most_ranks, [], {}
    check_world(changed(config, parallel={"ep_size": 1}), world)
    for size in range(1, min(world, routed) + 1):
        if world % size == 0 and routed % size == 0:
            try:
                changed(config, parallel={"ep_size": size})
                possible.append(size)
            except UserError as error:
                left_out[size] = str(error)
    if wanted is None:
        return possible, left_out
    if wanted in left_out:
        raise UserError(f"--ep-size {wanted}: {left_out[wanted]}")
    if wanted not in possible:
        raise UserError(
            f"--ep-size {wanted}: must divide the {world} ranks and the {routed} routed experts per task"
            f" (experts.count x split); possible: {', '.join(map(str, possible))}"
        )
    return [wanted], {}


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """`config` with other values, checked anew: `changed(config, parallel={"ep_size": 2})`. UserError."""
    values = config.model_dump()
    for section, entries in sections.items():
        values[section].update(entries)
    return build_config(values)


def check_machine(machine: Machine, config: Config, nodes: int, gpus: int) -> None:
    """UserError if `machine` was not measured in what `config` and the placement need."""
    cure = "measure again with fgmoe bench machine"
    for compute in machine.compute.values():
        for precision in {"fp32", config.train.precision, config.encoder_precision}:
            if precision not in compute.rates:
                raise UserError(f"--machine: {machine.name} was not measured in {precision}; {cure}")
    if gpus > 1 and not machine.links:
        raise UserError(f"--machine: {machine.name} was measured with one rank per node, so it has no links; {cure}")
    if nodes > 1 and machine.internode is None:
        raise UserError(
            f"--machine: {machine.name} was measured on one node; add --internode-gbps and --internode-latency-us,"
            f" or run fgmoe bench machine under torchrun on two nodes"
        )


def _cost(
    config: Config,
    counts: Counts,
    placement: Placement,
    machine: Optional[Machine],
    limit: Optional[float],
    imbalance: float,
) -> Candidate:
    config, device = changed(config, parallel={"ep_size": placement.ep_size}), machine.device if machine else "cuda"
    base = {"libraries": machine.base_bytes} if machine else {}
    needed = {**base, **memory(config, counts, placement, device, imbalance)}
    parts = predict(config, counts, placement, machine, imbalance) if machine else None
    fits = limit is None or sum(needed.values()) <= limit
    return Candidate(placement, needed, traffic(config, counts, placement), parts, fits)


def _choose(fitting: list[Candidate], of: int, asked: bool) -> tuple[Candidate, str]:
    if of == 1:
        return fitting[0], "the one asked for" if asked else "the only one possible"
    if fitting[0].parts is None:
        least = "the least traffic" if len(fitting) == of else f"the least traffic of the {len(fitting)} that fit"
        chosen = min(fitting, key=lambda candidate: [sum(getattr(s, way) for s in candidate.traffic) for way in LINKS])
        return chosen, f"{least}, first between nodes; give --machine to choose by time"
    fastest = min(candidate.seconds for candidate in fitting)
    chosen = next(candidate for candidate in fitting if candidate.seconds <= fastest * (1 + SAME))
    among = "the fastest" if len(fitting) == of else f"the fastest of the {len(fitting)} of {of} that fit"
    if chosen.seconds > fastest:
        among += f", to {SAME:.0%}, with the fewest ranks per exchange"
    return chosen, among


def _nothing_fits(candidates: list[Candidate], limit: float) -> str:
    least = _least(candidates)
    use, size = max(least.memory.items(), key=lambda item: item[1])
    return (
        f"no ep_size fits into {_gib(limit)} per rank: the least, ep_size={least.ep_size}, needs"
        f" {_gib(least.memory_bytes)}, of which {use} {_gib(size)}"
    )


def _least(candidates: list[Candidate]) -> Candidate:
    return min(candidates, key=lambda candidate: candidate.memory_bytes)


def _cure(
    config: Config, counts: Counts, count: Callable[[Config], Counts], costs: Callable[..., list[Candidate]]
) -> str:
    """The first change of the settings with which something fits."""
    for change in _changes(config):
        try:
            other = changed(config, **change)
        except UserError:
            continue
        recount = "encoder" in change or "micro_batch_size" in change.get("train", {})
        least = _least(costs(other, count(other) if recount else counts))
        if least.fits:
            told = " ".join(
                f"{s}.{key}={str(v).lower()}" for s, entries in change.items() for key, v in entries.items()
            )
            return f"set {told}: ep_size={least.ep_size} then needs {_gib(least.memory_bytes)}"
    return (
        "neither ZeRO nor activation checkpointing, one image per micro-batch or a bf16 encoder is enough: take a"
        " smaller encoder.name, a larger decoder.stride, or ranks with more memory"
    )


def _changes(config: Config) -> Iterator[dict[str, dict[str, Any]]]:
    """Settings to try, those first that cost least; what they say already is passed over."""
    train = config.train
    for stage in {0, 1, 2} - {config.parallel.zero_stage}:
        yield {"parallel": {"zero_stage": stage}}
    save = {} if train.activation_checkpointing else {"activation_checkpointing": True}
    if save:
        yield {"train": save}
    if config.encoder_precision == "fp32":
        yield {"encoder": {"precision": "bf16"}}
    smaller = [size for size in range(train.micro_batch_size - 1, 0, -1) if train.micro_batch_size % size == 0]
    yield from ({"train": {"micro_batch_size": size}} for size in smaller)
    if save:
        yield from ({"train": {**save, "micro_batch_size": size}} for size in smaller)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
