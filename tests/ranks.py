"""Runs a function on several gloo ranks, as fresh processes, and hands back what each returned.

The processes are forked from a server that has imported the slow libraries, so a world costs well under a second.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from typing import Any, Callable

from fgmoe_dist.benches.ranks import on_every_rank

_context = multiprocessing.get_context("forkserver")
# DeepSpeed's engine imports its Muon when it is made, and with it all of torch's compiler: half of a tiny run's time.
_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"
_context.set_forkserver_preload(["torch", "deepspeed", "fgmoe_dist.training.loop", _MUON])


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """`[function(*arguments) on rank 0, ...]`; AssertionError with the traceback of the first rank that failed."""
    try:
        return on_every_rank(_context, world, _on_one_thread, function, arguments, timeout=timeout)
    except RuntimeError as error:
        raise AssertionError(str(error)) from None


def _on_one_thread(ranks: Any, function: Callable[..., Any], arguments: tuple) -> Any:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    except BaseException:
        raise RuntimeError(traceback.format_exc()) from None  # a UserError too is told with its traceback
