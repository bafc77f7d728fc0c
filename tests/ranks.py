"""Runs a function on several gloo ranks, as fresh processes, and hands back what each returned.

The processes are forked from a server that has imported the slow libraries, so a world costs well under a second.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from multiprocessing import connection
from typing import Any, Callable

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "deepspeed", "fgmoe_dist.training.loop"])


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """`[function(*arguments) on rank 0, ...]`; raises with the traceback of the first rank that failed."""
    port = _free_port()
    pipes = [_context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        _context.Process(target=_enter, args=(rank, world, port, pipes[rank][1], function, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        answers, waiting = {}, {receiving: rank for rank, (receiving, _) in enumerate(pipes)}
        while waiting:
            ready = connection.wait(waiting, timeout)
            if not ready:
                raise TimeoutError(f"ranks {sorted(waiting.values())} of {world} gave no answer in {timeout} s")
            for receiving in ready:  # by arrival: the first to fail is the cause, the others lost it in a collective
                rank = waiting.pop(receiving)
                failed, answers[rank] = receiving.recv()
                if failed:
                    raise AssertionError(f"rank {rank} of {world}:\n{answers[rank]}")
        return [answers[rank] for rank in range(world)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _enter(rank: int, world: int, port: int, answer, function, arguments) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    import torch

    from fgmoe_dist.ranks import process_group

    torch.set_num_threads(1)
    try:
        with process_group():
            torch.set_num_threads(1)
            answer.send((False, function(*arguments)))
    except BaseException:
        answer.send((True, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
