"""This process's place among the ranks: environment, device, process group, ending.

torchrun, deepspeed and launchers/srun.sh all set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; a process
started plainly is a world of one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Callable, Iterator, Mapping, NamedTuple, Optional, TypeVar

import psutil
import torch
import torch.distributed as dist

from fgmoe_dist.errors import UserError, told
from fgmoe_dist.threads import share_cores

T = TypeVar("T")

# A rank that computes longer than this between two collectives is taken for dead.
TIMEOUT = timedelta(minutes=30)

MOST_RANKS = 10**6
LAUNCHERS = "torchrun, deepspeed and launchers/srun.sh set them all; unset them for one process"


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    local_rank: int
    device: torch.device
    threads: str = ""  # a line on the threads that it computes with, for a run's log; empty on a GPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class Terminated(SystemExit):
    """The process was told to end by SIGTERM: a cancelled job."""


class RankLost(RuntimeError):
    """This process ends because another rank has failed, whose own message says why."""


def from_first(look: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank: files, which ranks might see differently, only one of them looks at.

    What is the user's to mend is raised everywhere; anything unforeseen on rank 0, and RankLost on the others.
    """
    if not dist.is_initialized():  # a process that is alone
        return look()
    box: list = [None, None]
    failed: Optional[Exception] = None
    if dist.get_rank() == 0:
        try:
            box[0] = look()
        except Exception as error:
            failed, line = error, told(error)
            box[1] = (RankLost, "rank 0 has failed; its own message says why") if line is None else (UserError, line)
    dist.broadcast_object_list(box, src=0)
    if failed is not None:
        raise failed
    if box[1] is not None:
        kind, message = box[1]
        raise kind(message)
    return box[0]


class Place(NamedTuple):
    """What the launcher says of this process."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def read_environment(environment: Mapping[str, str]) -> Place:
    """The place among the ranks that the environment gives; one alone where it says nothing.

    UserError where a variable is no number, a rank is not below its world, or half of them are missing.
    """
    if "RANK" not in environment:
        if environment.get("WORLD_SIZE", "1") != "1":
            raise UserError(f"WORLD_SIZE={environment['WORLD_SIZE']} is set and RANK is not: {LAUNCHERS}")
        return Place(0, 1, 0, 1)
    missing = [name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise UserError(f"RANK={environment['RANK']} is set and {', '.join(missing)} is not: {LAUNCHERS}")
    world = _number(environment, "WORLD_SIZE", 1, MOST_RANKS)
    _number(environment, "MASTER_PORT", 0, 65535)
    local_size = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "LOCAL_SIZE"
    return Place(
        _number(environment, "RANK", 0, world - 1),
        world,
        _number(environment, "LOCAL_RANK", 0, world - 1),
        _number(environment, local_size, 1, world) if local_size in environment else 1,
    )


def _number(environment: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = environment[name]
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise UserError(f"{name}={text!r} in the environment: give a whole number from {low} to {high}; {LAUNCHERS}")
    return int(text)


def barrier() -> None:
    """Every rank waits for every other. NCCL would guess its device, and say so in every run's log."""
    gpus = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
    dist.barrier(device_ids=gpus)


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the ranks that the launcher started; leaves them on the way out, whatever happened."""
    quieten_deepspeed()
    place = read_environment(os.environ)
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    if cuda:
        _take_gpu(place.local_rank)
    threads = "" if cuda else share_cores(os.environ, place.local_world)
    signal.signal(signal.SIGTERM, _terminate)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    # NCCL that knows its device builds later groups from this one; a world of one has nothing to build from.
    bound = device if cuda and os.environ["WORLD_SIZE"] != "1" else None
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT, device_id=bound)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), place.local_rank, device, threads)
        barrier()
    finally:
        # After an error the other ranks may wait in a collective that will never come; do not wait for them.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


@contextlib.contextmanager
def ended_once() -> Iterator[None]:
    """Past its end SIGTERM is ignored: a launcher that lost another rank would cut short what this one still reports.

    Launchers follow up with SIGKILL after 30 s.
    """
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def exit_with_error(error: BaseException) -> None:
    """Ends this process: code 2 and one line for the user's mistake; 1 and a traceback for anything unforeseen.

    `os._exit`, because a failed rank's background threads may hang in a collective and keep the process alive.
    """
    text = os.environ.get("RANK", "0")
    rank = int(text) if text.isdecimal() else 0
    if (line := told(error)) is not None:
        if rank:
            # A mistake that all ranks see is rank 0's to tell; by now the launcher has ended this one.
            time.sleep(3)
        print(f"error{f' on rank {rank}' if rank else ''}: {line}", file=sys.stderr)
        code = 2
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif isinstance(error, RankLost):
        print(f"rank {rank}: {error}", file=sys.stderr)
        code = 1
    elif isinstance(error, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    else:
        traceback.print_exception(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_gpu(local_rank: int) -> None:
    gpus = torch.cuda.device_count()
    if gpus == 1 and os.environ.get("CUDA_VISIBLE_DEVICES", "") != "":
        local_rank = 0  # each rank was given one of its own (srun --gpus-per-task=1)
    if local_rank >= gpus:
        raise UserError(
            f"more processes than the {gpus} GPUs of this machine, and NCCL wants one each; start {gpus}, or set"
            f" CUDA_VISIBLE_DEVICES= to run on CPUs"
        )
    torch.cuda.set_device(local_rank)


def _terminate(signum, frame):
    if _has_lost_a_sibling():
        raise RankLost("another rank of this machine has died; its own message says why")
    raise Terminated(128 + signum)


def _has_lost_a_sibling() -> bool:
    """Whether the launcher, our parent, has fewer living children than it started ranks."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(os.getppid()).children()
        living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return "LOCAL_WORLD_SIZE" in os.environ and len(living) < int(os.environ["LOCAL_WORLD_SIZE"])
    return True  # a sibling, or the launcher, vanished while we looked


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def quieten_deepspeed() -> None:
    """To be called before anything imports DeepSpeed, for what it would otherwise say on every rank."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it had to find out
    # Its calls by old names, of which torch 2.13 warns.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
