"""One case: a target and a seed give an input and what became of it, always the same."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fgmoe_dist.errors import UserError

SLOWEST = 30  # seconds of a case


class Wrong(AssertionError):
    """The input was taken, but what was made of it is not right."""


def must(holds: bool, what: str) -> None:
    """`Wrong` unless it holds."""
    if not holds:
        raise Wrong(what)


class Hangs(BaseException):
    """A case took too long. No `Exception`, so that nothing which recovers from errors recovers from it."""


@dataclass(frozen=True)
class Target:
    """Something that reads input.

    Attributes:
        prepare: write good input into an empty folder; done once.
        spoil: change something in a copy of it, and say what.
        use: read it, as the program would. `Wrong` if what comes of it is not right.
        weight: how often, beside others.
    """

    name: str
    prepare: Callable[[Path], None]
    spoil: Callable[[Path, random.Random], str]
    use: Callable[[Path], None]
    weight: int = 4


@dataclass
class Outcome:
    """What became of a case. `fault` is empty where the end is an allowed one."""

    target: str
    seed: int
    change: str
    end: str  # "right", "refused", or the fault in a word
    fault: str = ""

    @property
    def command(self) -> str:
        return f"python -m tests.fuzz --target {self.target} --seed {self.seed} --cases 1"


class Workshop:
    """Good input of every target, made once, and a place for spoilt copies."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, target: Target, seed: int) -> tuple[Outcome, Path]:
        """A case, and the folder with its input."""
        good = self.folder / "good" / target.name
        if not good.exists():
            good.mkdir(parents=True)
            target.prepare(good)
        # A path that is the same whatever was run before, for it may be in a message or in the input.
        work = self.folder / "case"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work, symlinks=True)
        change = target.spoil(work, random.Random(f"{target.name} {seed}"))
        end, fault = _end_of(target, work)
        return Outcome(target.name, seed, change, end, fault), work


def _end_of(target: Target, work: Path) -> tuple[str, str]:
    try:
        with _limited(), _quiet(), _in(work):
            target.use(work)
        return "right", ""
    except UserError as error:
        return ("refused", "") if _is_one_line(str(error)) else ("many lines", f"UserError: {str(error)!r}")
    except (SystemExit, Exception, Hangs) as error:
        if isinstance(error, SystemExit) and error.code == 2:
            return "refused", ""  # argparse
        return type(error).__name__, traceback.format_exc()


def _is_one_line(text: str) -> bool:
    return bool(text.strip()) and len(text.splitlines()) == 1


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hangs(f"more than {SLOWEST} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SLOWEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what is printed, libraries' warnings among it."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def workshop() -> Iterator[Workshop]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        yield Workshop(Path(folder))
