"""What one rank's micro-batch amounts to before it is spread over ranks: `trace` fills it in, the rest reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Operations of one kind that a machine's profile has one rate for."""

    part: str  # encoder | decoder | shared | global | losses
    backward: bool
    kind: str  # a key of `Compute.rates`
    precision: str
    size: int  # what the rate depends on; 1 where on nothing
    amount: float  # FLOPs, elements or bytes
    calls: int


@dataclass(frozen=True)
class Counts:
    """Parameters of the whole model, and the work and memory of a micro-batch without its routed experts."""

    encoder_parameters: int
    dense_parameters: int  # trained and replicated: everything but the routed experts
    expert_parameters: int  # of all routed experts of all tasks and blocks, on however many ranks
    tokens: int  # of one task in a micro-batch
    saved_bytes: float  # what the forward pass keeps for the backward pass
    block_saved_bytes: float  # of that, inside FGMoE blocks: activation checkpointing drops it
    largest_bytes: float  # of what one operation reads and writes
    work: tuple[Work, ...]
