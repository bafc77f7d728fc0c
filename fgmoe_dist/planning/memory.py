"""Bytes of memory that one rank needs, by what they are for.

Under ZeRO 1 and 2 DeepSpeed keeps the trained parameters in flat buffers, padded so that each rank owns an equal
part; of its part a rank holds an fp32 copy and the moments, also where the parameters are fp32 already.
"""

from __future__ import annotations

import math

from fgmoe_dist.config import REDUCTION_BUCKET, Config
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.kept import routed_bytes
from fgmoe_dist.planning.placement import Placement
from fgmoe_dist.planning.traffic import busiest, row_bytes, rows_to_a_rank, value_bytes

MOMENT_BYTES = 8  # two fp32 numbers a parameter
ALIGNMENT = 2  # elements that a rank's part of a flat buffer is rounded up to (DeepSpeed's nccl_start_alignment_factor)


def memory(
    config: Config, counts: Counts, placement: Placement, device: str, imbalance: float = 1.0
) -> dict[str, float]:
    """Bytes by use, of one rank. `config.parallel.ep_size` is the placement's.

    `imbalance` is the load of the busiest rank of an expert group over the mean.
    """
    stage, width = config.parallel.zero_stage, value_bytes(config)
    imbalance = busiest(imbalance, placement.ep_size)
    blocks = min(1, config.routed.blocks) if config.train.activation_checkpointing else config.routed.blocks
    groups = (
        (counts.dense_parameters, placement.world),
        (counts.expert_parameters // placement.ep_size, placement.copies),
    )
    trained = sum(size for size, _ in groups)
    flat = sum(padded(size, ranks) for size, ranks in groups) if stage else trained
    own = sum(padded(size, ranks) // ranks for size, ranks in groups) if stage else trained
    return {
        "encoder": counts.encoder_parameters * (2 if config.encoder_precision == "bf16" else 4),
        "parameters": flat * width,
        "gradients": trained * width,
        "fp32 parameters": 4 * own if stage else 0,
        "moments": MOMENT_BYTES * own,
        "gradient partition": 4 * own if stage else 0,
        "reduction buffers": _reduction_buffers(trained, stage, device) * width,
        "activations": _activations(config, counts),
        "routed activations": blocks * routed_bytes(config, counts, device, imbalance),
        "dispatch buffers": imbalance * _dispatch_buffers(config),
        "one operation": counts.largest_bytes,
    }


def padded(size: int, ranks: int) -> int:
    """Elements of a flat buffer of `size` that `ranks` share."""
    return math.ceil(size / (ALIGNMENT * ranks)) * ALIGNMENT * ranks


def _reduction_buffers(trained: int, stage: int, device: str) -> int:
    """Elements. On a GPU there are two, to overlap."""
    return min(trained, REDUCTION_BUCKET) * (1 if stage == 0 or device == "cpu" else 2)


def _activations(config: Config, counts: Counts) -> float:
    if not config.train.activation_checkpointing:
        return counts.saved_bytes
    return counts.saved_bytes - counts.block_saved_bytes * (1 - 1 / max(1, config.routed.blocks))


def _dispatch_buffers(config: Config) -> float:
    """The bytes on their way in and out, of the larger exchange; one is under way at a time."""
    if config.parallel.ep_size == 1:
        return 0
    return 2 * rows_to_a_rank(config) * (config.parallel.ep_size - 1) * row_bytes(config)["out"]
