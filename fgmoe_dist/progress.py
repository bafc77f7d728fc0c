"""A progress bar where there is a terminal, plain lines with an ETA where there is none (batch logs)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")


def track(
    iterable: Iterable[Item],
    description: str,
    total: int | None = None,
    *,
    every_s: float = 10.0,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yield the items of `iterable` while showing how far it has come.

    Args:
        iterable: what to walk.
        description: a few words, e.g. "building shards".
        total: number of items; taken from `len(iterable)` where that exists, else unknown.
        every_s: seconds between plain lines.
        stream: where to write, standard error by default.
    """
    stream = stream or sys.stderr
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if stream.isatty():
        return _bar(iterable, description, total, stream)
    return _lines(iterable, description, total, every_s, stream)


def _bar(iterable: Iterable[Item], description: str, total: int | None, stream: TextIO) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield from progress.track(iterable, total=total, description=description)


def _lines(
    iterable: Iterable[Item], description: str, total: int | None, every_s: float, stream: TextIO
) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every_s and done != total:  # the end has a line of its own
            last = now
            print(_line(description, done, total, now - start), file=stream, flush=True)
    print(_line(description, done, total, time.monotonic() - start), file=stream, flush=True)


def _line(description: str, done: int, total: int | None, seconds: float) -> str:
    """One line of a log: how many, how fast, how long still."""
    rate = done / seconds if seconds > 0 else 0.0
    if total is None:
        return f"{description}: {done}, {rate:.1f}/s"
    if done >= total:
        return f"{description}: {done}/{total}, {rate:.1f}/s, took {clock(seconds)}"
    left = clock((total - done) / rate) if rate else "?"
    return f"{description}: {done}/{total}, {rate:.1f}/s, {left} left"


def tell(line: str, stream: TextIO | None = None) -> None:
    """Says what begins now and may take a while; on standard error, as bars are, so that results stay by themselves."""
    print(line, file=stream or sys.stderr, flush=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
