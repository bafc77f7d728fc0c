"""First weights that depend on what a part is, and not on what was made before it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def drawn_from(*identity: object) -> Iterator[None]:
    """Within, torch draws on the CPU from a seed that `identity` alone decides; outside nothing changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(repr(identity).encode()))
        yield
