"""Several ranks of this machine for a measurement, without a launcher."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any, Callable

from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import free_port, process_group


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(ranks, *arguments)` returns on rank 0 of `world` fresh processes, its cores shared among them.

    `function` and its arguments are pickled by name. The first rank that fails ends all; UserError stays one.
    """
    context, port = multiprocessing.get_context("spawn"), free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_enter, args=(rank, world, port, pipes[rank][1], function, arguments), daemon=True)
        for rank in range(world)
    ]
    try:
        for process, (_, sending) in zip(processes, pipes):
            process.start()
            sending.close()  # so that a rank's death is the end of its pipe
        return _answers([receiving for receiving, _ in pipes])[0]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid:
                process.join()


def _answers(pipes: list[Connection]) -> list[Any]:
    """Every rank's answer, taken in the order they come, so that the first failure is seen at once."""
    answers: dict[int, Any] = {}
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting:
        for pipe in wait(list(waiting)):
            rank = waiting.pop(pipe)
            try:
                error, answers[rank] = pipe.recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} of {len(pipes)} died") from None
            if error is not None:
                raise error(f"rank {rank} of {len(pipes)}: {answers[rank]}")
    return [answers[rank] for rank in range(len(pipes))]


def _enter(rank: int, world: int, port: int, answer: Connection, function: Callable, arguments: tuple) -> None:
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
