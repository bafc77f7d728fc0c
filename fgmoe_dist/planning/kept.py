"""Bytes that a block's routed experts keep from the forward pass for the backward pass.

Their shapes depend on values and on other ranks, so `trace` cannot see them: this is arithmetic on what the routers,
the dispatch and each kernel save.
"""

from __future__ import annotations

from typing import NamedTuple

from fgmoe_dist.config import Config
from fgmoe_dist.experts.kernels import AUTO, automatic, widths_of
from fgmoe_dist.experts.kernels.fitness import Place
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.traffic import GATE_BYTES, INDEX_BYTES, rows_to_a_rank, value_bytes

LONG = 8  # bytes of an index as torch sorts and gathers by it


class Kept(NamedTuple):
    """What one kernel keeps, in bytes, without the experts' weights."""

    features: float  # of a row
    row: float  # beside its features
    slot: float
    empty_too: bool  # also of slots whose expert lives elsewhere


def kernel_keeps(kind: str, kernel: str, channels: int, hidden: int, top_k: int, width: int, experts: int = 1) -> Kept:
    """`hidden` is a fine expert's, `width` the bytes of a feature, `experts` those of a rank.

    What each saves is in experts/kernels/.
    """
    # Autograd keeps a slot's features in and out of the experts and out of the gate, and its hidden units.
    plain = width * (3 * channels + KINDS[kind].kept_units * hidden + 1)
    keeps = {
        "reference": Kept(0, 0, plain + 2 * LONG, False),
        # Of a row, all hidden units before and after the gates.
        "wide": Kept(channels * width, 2 * hidden * experts * width + LONG, 0, False),
        "grouped": Kept(0, 0, plain + 3 * LONG + 1, True),
        "cpu": Kept(channels * width, top_k * GATE_BYTES, width * (hidden + 1) + 2 * LONG + 1, False),
        "triton": Kept(channels * width, top_k * (GATE_BYTES + INDEX_BYTES), width * hidden + LONG, True),
    }
    return keeps.get(kernel, keeps["reference"])  # one that came from outside


def planned_kernel(config: Config, device: str) -> str:
    """What `experts.kernel` stands for on that device."""
    channels, experts = config.routed.channels, config.routed.experts
    if experts.kernel != AUTO:
        return experts.kernel
    here = experts.banks(config.routed.tasks) * experts.routed // config.parallel.ep_size
    place = Place(device, config.train.precision, widths_of(channels, experts.fine_hidden), here)
    return automatic(experts.kind, place)


def routed_bytes(config: Config, counts: Counts, device: str, imbalance: float) -> float:
    """Of one block and micro-batch on the busiest rank, whose experts get `imbalance` times the mean of slots."""
    routed, ep_size, width = config.routed, config.parallel.ep_size, value_bytes(config)
    experts, channels, top_k = routed.experts, routed.channels, routed.experts.top_k
    here = experts.banks(routed.tasks) * experts.routed // ep_size
    keeps = kernel_keeps(
        experts.kind, planned_kernel(config, device), channels, experts.fine_hidden, top_k, width, here
    )
    tokens, rows = routed.tasks * counts.tokens, rows_to_a_rank(config) * ep_size
    slots = (rows if keeps.empty_too else tokens) * top_k
    # Where nothing is dispatched rows are the tokens themselves, which shared experts keep too, or routers in fp32.
    others = ep_size == 1 and (experts.shared or width == 4)
    came = rows * (keeps.row + (0 if others else keeps.features)) + slots * keeps.slot
    sent = rows * (2 * LONG + top_k) if ep_size > 1 else 0  # which token a row is, which of its slots count
    return _router_bytes(config, tokens) + sent + imbalance * came


def _router_bytes(config: Config, tokens: int) -> float:
    """Logits, scores and choices, and the tokens they are of: in fp32, whatever the features are."""
    experts = config.routed.experts
    counted = experts.shared and value_bytes(config) == 4  # then they are what shared experts keep
    features = 0 if counted else 4 * config.routed.channels
    return tokens * (8 * experts.routed + LONG * experts.top_k + features)
