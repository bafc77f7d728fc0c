"""What one image costs: floating-point operations of a forward pass in evaluation, counted alike for every decoder.

A multiplication and its addition are two. Counted are products, convolutions and attention, as they are called on
tensors without numbers; norms, activations, sampling and resizing are not. Of routed experts those that a token passes
are counted, k for each task and token, whichever kernel computes them.
"""

from __future__ import annotations

from typing import NamedTuple

from fgmoe_dist.config import Config
from fgmoe_dist.decoders.base import Routed
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.planning.trace import count_forward

COUNTED = ("matmul", "conv1x1", "conv3x3", "attention")  # kinds of `Work` whose amounts are such operations


class Flops(NamedTuple):
    """Of one image, in units of 1e9."""

    encoder: float
    decoder: float


def flops_of(config: Config) -> Flops:
    """Of the model that `config` describes, at its `data.image_size`. UserError for an encoder that cannot be."""
    amounts = {True: 0.0, False: _routed(config.routed)}
    for work in count_forward(config):
        if work.kind in COUNTED:
            amounts[work.part == "encoder"] += work.amount
    return Flops(amounts[True] / 1e9, amounts[False] / 1e9)


def figures_of(config: Config) -> dict[str, float]:
    """`encoder_gflops` and `decoder_gflops`, for a run's record; empty where a decoder cannot run without numbers."""
    try:
        found = flops_of(config)
    except Exception:  # a plug-in's decoder may do anything, and a run is not to end for want of a figure
        return {}
    return {"encoder_gflops": round(found.encoder, 3), "decoder_gflops": round(found.decoder, 3)}


def _routed(routed: Routed) -> float:
    """Of the routers' logits and the experts that tokens pass; 0 where there are none."""
    experts = routed.experts
    tokens = routed.blocks * routed.tasks * routed.tokens
    passed = experts.top_k * KINDS[experts.kind].flops(routed.channels, experts.fine_hidden)
    return tokens * (2 * routed.channels * experts.routed + passed)
