"""Why a kernel cannot compute some experts, each said once; a run, a configuration, a plan and a benchmark ask here.

A reason goes on after the kernel's name and ends in what else to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, Optional

BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Place:
    """Where experts are to be computed, and how wide their rows are."""

    device: str  # cpu, cuda, ...; empty: not known yet
    precision: str  # a key of `BYTES`
    widths: Mapping[str, int]  # numbers in a row, by what decides them
    experts: int = 0  # on a rank; 0: not known yet


Unfit = Callable[[Place], Optional[str]]


def fits_anywhere(place: Place) -> Optional[str]:
    """The kernel `wide`."""
    return None


def needs_a_cpu(place: Place) -> Optional[str]:
    """The kernel `cpu`."""
    if place.device in ("", "cpu"):
        return None
    return f"computes on a CPU only, and the experts are on {place.device}; take triton"


def needs_whole_16_bytes(place: Place) -> Optional[str]:
    """The kernel `grouped`: what `grouped_mm` takes."""
    multiple = 16 // BYTES[place.precision]
    for key, width in place.widths.items():
        if width % multiple:
            return (
                f"takes rows of whole 16 bytes, and {key} gives {width} numbers in {place.precision};"
                f" make it a multiple of {multiple}"
            )
    return None


def needs_cuda(place: Place) -> Optional[str]:
    """The kernel `triton`, but for the interpreter that its tests run it in. UserError without the package triton."""
    if not place.device:
        return None
    from fgmoe_dist.experts.kernels import triton

    if place.device == "cuda" or triton.INTERPRETED:
        return None
    return f"needs a CUDA device, and the experts are on {place.device}; start it where there is one"
