"""Several ranks of this machine without a launcher, as fresh processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Callable

from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import Plugged
from fgmoe_dist.ranks import free_port, process_group

# A rank that dies says nothing. The others lose it in a collective, and have this long to say where.
GRACE_S = 10.0


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(ranks, *arguments)` returns on rank 0 of `world` fresh processes, its cores shared among them.

    `function` and its arguments are pickled by name. The first rank that fails ends all; UserError stays one.
    """
    return on_every_rank(multiprocessing.get_context("spawn"), world, function, *arguments)[0]


def on_every_rank(
    context: BaseContext, world: int, function: Callable[..., Any], *arguments: Any, timeout: float | None = None
) -> list[Any]:
    """What every rank returns, in their order.

    Args:
        context: how processes are started.
        timeout: seconds without any answer, after which TimeoutError is raised.
    """
    port = free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(
            target=_enter, args=(Plugged(), rank, world, port, pipes[rank][1], function, arguments), daemon=True
        )
        for rank in range(world)
    ]
    try:
        for process, (_, sending) in zip(processes, pipes):
            process.start()
            sending.close()  # so that a rank's death is the end of its pipe
        return _answers([receiving for receiving, _ in pipes], timeout)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid:
                process.join()


def _answers(pipes: list[Connection], timeout: float | None) -> list[Any]:
    """Every rank's answer, taken in the order they come: the first failure is the cause, the others only follow."""
    answers: dict[int, Any] = {}
    died = ""
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting and (ready := wait(list(waiting), GRACE_S if died else timeout)):
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                error, answers[rank] = pipe.recv()
            except EOFError:
                died = died or f"rank {rank} of {len(pipes)} died"
                continue
            if error is not None:
                raise error(f"{f'{died}; ' if died else ''}rank {rank} of {len(pipes)}: {answers[rank]}")
    if died:
        raise RuntimeError(died)
    if waiting:
        raise TimeoutError(f"ranks {sorted(waiting.values())} of {len(pipes)} gave no answer in {timeout} s")
    return [answers[rank] for rank in range(len(pipes))]


def _enter(
    _: Plugged, rank: int, world: int, port: int, answer: Connection, function: Callable, arguments: tuple
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        with process_group() as ranks:
            result = (None, function(ranks, *arguments))
    except UserError as error:
        result = (UserError, str(error))
    except BaseException:
        result = (RuntimeError, traceback.format_exc())
    with contextlib.suppress(BrokenPipeError):  # nobody is left to ask
        answer.send(result)
