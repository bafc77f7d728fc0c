"""This process's place among the ranks: environment, device, process group, ending.

torchrun, deepspeed and launchers/srun.sh all set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; a process
started plainly is a world of one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Iterator

import torch
import torch.distributed as dist

from fgmoe_dist.errors import UserError

# A rank that computes longer than this between two collectives is taken for dead.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class Terminated(SystemExit):
    """The process was told to end by SIGTERM (a launcher that lost another rank, a cancelled job)."""


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the ranks that the launcher started; leaves them on the way out, whatever happened."""
    import deepspeed

    _prepare_deepspeed()
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", 1)))
        if "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] == "1":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
    signal.signal(signal.SIGTERM, _terminate)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", timeout=TIMEOUT, verbose=False)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)
        dist.barrier()
    finally:
        # After an error the other ranks may wait in a collective that will never come; do not wait for them.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def exit_with_error(error: BaseException) -> None:
    """Ends this process as docs/contracts.md promises: 2 and one line for the user's mistake, else 1 and a traceback.

    `os._exit`, because a failed rank's background threads may hang in a collective and keep the process alive.
    """
    if isinstance(error, UserError):
        if _is_first_to_say(str(error)):
            print(f"error: {error}", file=sys.stderr)
        code = 2
    elif isinstance(error, Terminated):
        code = 128 + signal.SIGTERM
    else:
        traceback.print_exception(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_first_to_say(message: str) -> bool:
    """One rank says what all of them met, a damaged configuration, and whichever met it what one did, a bad shard."""
    if not dist.is_initialized():
        return int(os.environ.get("RANK", 0)) == 0
    try:
        return dist.distributed_c10d._get_default_store().add(f"fgmoe error: {message}", 1) == 1
    except RuntimeError:  # the store's rank is gone, and spoke before it went
        return False


def _terminate(signum, frame):
    raise Terminated


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _prepare_deepspeed() -> None:
    import logging

    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # Its shared-memory all-reduce for CPUs wants a C++ compiler at the first start, and spins for ever on the flag
    # of a rank that died; gloo needs neither and reports the death.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
