"""Machines with round numbers, so that a test can tell by hand how long something takes."""

from __future__ import annotations

from fgmoe_dist.planning.profile import Compute, Link, Links, Machine

FLOPS, ELEMENTS, BYTES = 1e12, 1e9, 1e10

PRODUCTS = ("matmul", "attention", "conv1x1", "conv1x1_backward", "conv3x3", "conv3x3_backward",
            "experts:256x64", "experts_backward:256x64")  # fmt: skip
ELEMENTWISE = ("gelu", "gelu_backward", "layer_norm", "layer_norm_backward", "softmax", "softmax_backward", "adam",
               "grid_sample", "grid_sample_backward", "upsample", "upsample_backward")  # fmt: skip


def flat_compute(overhead_s: float = 0.0) -> Compute:
    """1 TFLOP/s, 1e9 elements and 1e10 bytes a second, whatever the size."""
    rates = {kind: [(1, FLOPS)] for kind in PRODUCTS} | {kind: [(1, ELEMENTS)] for kind in ELEMENTWISE}
    rates["stream"] = [(1, BYTES)]
    return Compute(threads=1, overhead_s=overhead_s, rates={"fp32": rates, "bf16": rates})


def machine(**changes) -> Machine:
    """One GPU speed for all; a millisecond a message and 1e9 bytes a second on a node, a tenth of it between nodes."""
    near, far = Link(1e-3, 1e9), Link(1e-2, 1e8)
    values = dict(
        name="round", device="cuda", cores=8, memory_bytes=16 * 2**30, base_bytes=0, pixels_per_s=1e6, versions={},
        compute={1: flat_compute()}, links={2: Links(near, near)}, internode=Links(far, far),
        internode_source="assumed",
    )  # fmt: skip
    return Machine(**{**values, **changes})
