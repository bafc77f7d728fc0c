"""The layouts of a configuration on so many ranks, what each costs, and the one to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from fgmoe_dist.config import Config, check_world
from fgmoe_dist.errors import UserError
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.layout import Layout
from fgmoe_dist.planning.machine import Machine
from fgmoe_dist.planning.memory import memory
from fgmoe_dist.planning.times import Part, predict, total
from fgmoe_dist.planning.traffic import Sent, traffic

# Two predictions closer than this are the same; the smaller ep_size then has less traffic and fewer ways to fail.
SAME = 0.02
LINKS = ("far", "near")  # the slower first


@dataclass(frozen=True)
class Candidate:
    """One ep_size and what a rank needs with it."""

    layout: Layout
    memory: dict[str, float]  # bytes by use
    traffic: list[Sent]  # a step
    parts: Optional[list[Part]]  # of a step; None where no machine was given
    fits: bool

    @property
    def ep_size(self) -> int:
        return self.layout.ep_size

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
    limit_bytes: Optional[float]  # of memory a rank; None: unknown


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
    sizes = ep_sizes(config, nodes, gpus, ep_size)
    if machine is not None:
        check_machine(machine, config, nodes, gpus)
    counts = count(config)
    limit = memory_bytes or (machine.memory_a_rank(gpus) if machine else None)
    candidates = [_cost(config, counts, Layout(nodes, gpus, size), machine, limit, imbalance) for size in sizes]
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        raise UserError(_nothing_fits(candidates, limit))
    chosen, why = _choose(fitting, len(candidates))
    return Plan(candidates, chosen, why, limit)


def ep_sizes(config: Config, nodes: int, gpus: int, wanted: Optional[int] = None) -> list[int]:
    """The ep_sizes that `nodes` x `gpus` ranks and the experts allow. UserError if `wanted` is not among them."""
    for option, value in (("--nodes", nodes), ("--gpus-per-node", gpus)):
        if value < 1:
            raise UserError(f"{option} {value}: must be 1 or more")
    if config.experts.backend != "fused":
        raise UserError(
            f"experts.backend={config.experts.backend}: only the fused backend can be planned;"
            f" add --set experts.backend=fused"
        )
    world, routed, groups = nodes * gpus, config.experts.routed, config.experts.groups
    check_world(with_ep_size(config, 1), world)
    possible = [
        size for size in range(1, min(world, routed) + 1)
        if world % size == 0 and routed % size == 0 and (not groups or groups % size == 0)
    ]  # fmt: skip
    if wanted is None:
        return possible
    if wanted not in possible:
        among = f" and the {groups} groups (experts.groups)" if groups else ""
        raise UserError(
            f"--ep-size {wanted}: must divide the {world} ranks and the {routed} routed experts a task"
            f" (experts.count x split){among}; possible: {', '.join(map(str, possible))}"
        )
    return [wanted]


def check_machine(machine: Machine, config: Config, nodes: int, gpus: int) -> None:
    """UserError if `machine` was not measured in what `config` and the layout need."""
    cure = "measure again with fgmoe bench machine"
    for compute in machine.compute.values():
        for precision in {"fp32", config.train.precision, config.encoder_precision}:
            if precision not in compute.rates:
                raise UserError(f"--machine: {machine.name} was not measured in {precision}; {cure}")
    if gpus > 1 and not machine.links:
        raise UserError(f"--machine: {machine.name} was measured with one rank a node, so it has no links; {cure}")
    if nodes > 1 and machine.internode is None:
        raise UserError(
            f"--machine: {machine.name} was measured on one node; add --internode-gbps and --internode-latency-us,"
            f" or run fgmoe bench machine under torchrun on two nodes"
        )


def with_ep_size(config: Config, ep_size: int) -> Config:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"ep_size": ep_size})})


def _cost(
    config: Config, counts: Counts, layout: Layout, machine: Optional[Machine], limit: Optional[float], imbalance: float
) -> Candidate:
    config, device = with_ep_size(config, layout.ep_size), machine.device if machine else "cuda"
    base = {"libraries": machine.base_bytes} if machine else {}
    needed = {**base, **memory(config, counts, layout, device, imbalance)}
    parts = predict(config, counts, layout, machine, imbalance) if machine else None
    fits = limit is None or sum(needed.values()) <= limit
    return Candidate(layout, needed, traffic(config, counts, layout), parts, fits)


def _choose(fitting: list[Candidate], of: int) -> tuple[Candidate, str]:
    if of == 1:
        return fitting[0], "the one asked for"
    if fitting[0].parts is None:
        least = "the least traffic" if len(fitting) == of else f"the least traffic of the {len(fitting)} that fit"
        chosen = min(fitting, key=lambda candidate: [sum(getattr(s, way) for s in candidate.traffic) for way in LINKS])
        return chosen, f"{least}, first between nodes; give --machine to choose by time"
    fastest = min(candidate.seconds for candidate in fitting)
    chosen = next(candidate for candidate in fitting if candidate.seconds <= fastest * (1 + SAME))
    among = "the fastest" if len(fitting) == of else f"the fastest of the {len(fitting)} of {of} that fit"
    if chosen.seconds > fastest:
        among += f", to {SAME:.0%}, with the fewest ranks an exchange"
    return chosen, among


def _nothing_fits(candidates: list[Candidate], limit: float) -> str:
    least = min(candidates, key=lambda candidate: candidate.memory_bytes)
    use, size = max(least.memory.items(), key=lambda item: item[1])
    cures = {
        "activations": "lower train.micro_batch_size or raise decoder.stride",
        "routed activations": "lower train.micro_batch_size, or set train.activation_checkpointing=true",
        "one operation": "lower train.micro_batch_size",
        "dispatch buffers": "lower train.micro_batch_size",
        "encoder": "set encoder.precision=bf16 or take a smaller encoder.name",
        "reduction buffers": "set parallel.zero_stage=0",
    }
    cure = cures.get(use, "take more GPUs, parallel.zero_stage=1 or 2, or fewer experts")
    return (
        f"no ep_size fits into {_gib(limit)} a rank: the least, ep_size={least.ep_size}, needs"
        f" {_gib(least.memory_bytes)}, of which {use} {_gib(size)}; {cure}"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
