"""Bytes that a rank sends in a step: the experts' exchange, the gradients' reduction, the parameters' gathering.

Legend of names: out and back are the two exchanges of a block; near stays on a node, far leaves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fgmoe_dist.config import Config
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.placement import Placement

INDEX_BYTES = GATE_BYTES = 4  # int32 and fp32, whatever the precision of the features


@dataclass(frozen=True)
class Sent:
    """Bytes of one kind of collective that a rank sends in a step."""

    name: str
    near: float
    far: float


def value_bytes(config: Config) -> int:
    """Bytes of a trained weight, its gradient, and a decoder feature."""
    return 2 if config.train.precision == "bf16" else 4


def accumulation(config: Config, world: int) -> int:
    """The micro-batches that a rank computes in a step."""
    return config.train.batch_size // (config.train.micro_batch_size * world)


def missed_chance(experts: Experts, ep_size: int) -> float:
    """The chance that none of a token's k experts lives on a given rank, at even routing.

    k distinct of N' experts, out of `max_ranks_per_token` groups of them where that is set.
    """
    groups = experts.groups or ep_size
    limit = min(experts.max_ranks_per_token or groups, groups)
    width, here = experts.routed // groups, groups // ep_size
    reachable = math.comb(limit * width, experts.top_k)
    return sum(
        math.comb(here, j) * math.comb(groups - here, limit - j) / math.comb(groups, limit)
        * math.comb((limit - j) * width, experts.top_k) / reachable
        for j in range(min(here, limit) + 1)
        if limit - j <= groups - here
    )  # fmt: skip


def rows_to_a_rank(config: Config) -> float:
    """Tokens that one rank sends to each rank of its group, itself included, in one exchange, at even routing."""
    routed = config.routed
    tokens = routed.tasks * config.train.micro_batch_size * routed.tokens
    return tokens * (1 - missed_chance(routed.experts, config.parallel.ep_size))


def busiest(imbalance: float, ep_size: int) -> float:
    """`imbalance`, the load of the busiest rank over the mean, as far as `ep_size` ranks can have it."""
    return min(imbalance, ep_size)


def row_bytes(config: Config) -> dict[str, int]:
    """Bytes of a token in each of the four exchanges of a block and micro-batch.

    Out with its channels, gates and the indices of its experts; back the weighted sum alone. The gradients go the other
    way: of the sum, then of channels and gates.
    """
    channels, k = config.routed.channels * value_bytes(config), config.routed.experts.top_k
    return {
        "out": channels + k * (GATE_BYTES + INDEX_BYTES),
        "back": channels,
        "back_gradient": channels,
        "out_gradient": channels + k * GATE_BYTES,
    }


def exchange_bytes(config: Config) -> dict[str, float]:
    """Bytes one rank sends to other ranks in one all-to-all of a block and micro-batch, out and back, at even routing.

    A token goes once to each rank that holds some of its k experts: with its channels, its gates and their indices on
    the way out, with the sum alone on the way back.
    """
    rows = rows_to_a_rank(config) * (config.parallel.ep_size - 1)
    sizes = row_bytes(config)
    return {"out": rows * sizes["out"], "back": rows * sizes["back"]}


def exchanges(config: Config, world: int) -> dict[str, int]:
    """How often a step makes each of the four exchanges."""
    times = config.routed.blocks * accumulation(config, world)
    forward = 2 * times if config.train.activation_checkpointing else times  # computed again in the backward pass
    return {"out": forward, "back": forward, "back_gradient": times, "out_gradient": times}


def traffic(config: Config, counts: Counts, placement: Placement) -> list[Sent]:
    """All that a rank sends in a step, by kind of collective. `config.parallel.ep_size` is the placement's."""
    rows, sizes, found = rows_to_a_rank(config), row_bytes(config), []
    for name, times in exchanges(config, placement.world).items():
        size = times * rows * sizes[name]
        found.append(
            Sent(f"all-to-all {name}".replace("_", " "), size * placement.near_peers, size * placement.far_peers)
        )
    # At stage 2 every micro-batch is reduced, before only the last; always by all-reduce, which is two rounds.
    reductions = accumulation(config, placement.world) if config.parallel.zero_stage == 2 else 1
    width, experts = value_bytes(config), counts.expert_parameters / placement.ep_size
    for name, size, spread in (
        ("dense", counts.dense_parameters * width, placement.replicas),
        ("expert", experts * width, placement.expert_replicas),
    ):
        near, far = spread.ring_bytes(size)
        found.append(Sent(f"all-reduce of {name} gradients", 2 * reductions * near, 2 * reductions * far))
        if config.parallel.zero_stage:
            found.append(Sent(f"all-gather of {name} parameters", near, far))
    return found
