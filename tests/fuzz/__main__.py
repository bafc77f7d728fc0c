"""Runs random cases until the time is up, and writes down what fails.

python -m tests.fuzz --seconds 60
python -m tests.fuzz --target shards --seed 123 --cases 1      makes one case again and shows its end

A failing case lies in fuzz-failures/TARGET-SEED/: the input, what was changed in it, and the traceback. Cases run in a
process of their own, so that one which kills it (a crash of a C library, no memory left) is a failure like any other.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

MOST_MEMORY = 12 << 30  # bytes of address space
HANGS = 120  # seconds that the last case may take beyond the end
ENDS = 2  # seconds that are kept for telling the end


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="when to stop (default 60)")
    parser.add_argument("--cases", type=int, default=10**9, help="how many cases at most")
    parser.add_argument("--seed", type=int, help="of the first case; the others count on (default: another each time)")
    parser.add_argument("--target", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="folder for failing cases")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    return parser.parse_args()


def main() -> int:
    args = _arguments()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(10**9)
    return _run_here(args) if args.here else _run_apart(args)


def _run_apart(args: argparse.Namespace) -> int:
    """Starts processes that run the cases, one after the other dies."""
    end, seed, failures = time.monotonic() + args.seconds, args.seed, 0
    print(f"fuzz: seed {seed}, {args.seconds:g} s", flush=True)
    note = args.out / ".running"
    while (left := end - time.monotonic()) > ENDS and seed < args.seed + args.cases:
        words = ["--here", "--seconds", str(left - ENDS), "--seed", str(seed), "--out", str(args.out)]
        words += ["--cases", str(args.seed + args.cases - seed), *(f"--target={name}" for name in args.target)]
        note.unlink(missing_ok=True)
        try:
            code = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], timeout=left + HANGS).returncode
        except subprocess.TimeoutExpired:  # a C library that hangs hears of no alarm
            code = "hangs"
        if code in (0, 1):
            failures += code
            break
        failures += 1
        if not note.exists():
            print(f"fuzz: the process ended with {code} before any case", flush=True)
            break
        target, number = note.read_text().split()
        seed = int(number) + 1
        print(f"FAULT {target} {number}: killed the process ({code})", flush=True)
        print(f"  again: python -m tests.fuzz --target {target} --seed {number} --cases 1", flush=True)
    note.unlink(missing_ok=True)
    if args.out.is_dir() and not any(args.out.iterdir()):
        args.out.rmdir()
    return 1 if failures else 0


def _run_here(args: argparse.Namespace) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.fuzz.harness import workshop
    from tests.fuzz.targets import TARGETS

    targets = [target for target in TARGETS if not args.target or target.name in args.target]
    if not targets:
        sys.exit(f"no such target; there are {', '.join(target.name for target in TARGETS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    ends: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    end, seed = time.monotonic() + args.seconds, args.seed
    with workshop() as shop:
        while time.monotonic() < end and seed < args.seed + args.cases:
            target = random.Random(seed).choices(targets, [target.weight for target in targets])[0]
            (args.out / ".running").write_text(f"{target.name} {seed}")
            outcome, work = shop.run(target, seed)
            ends[target.name, outcome.end] += 1
            if outcome.fault:
                kind = _kind(outcome)
                faults[kind] += 1
                if faults[kind] == 1:
                    _write_down(outcome, work, args.out)
            elif args.cases == 1:
                print(f"{outcome.target} {outcome.seed}: {outcome.change}: {outcome.end}")
            seed += 1
    _tell(ends, faults, seed - args.seed)
    return 1 if faults else 0


def _kind(outcome) -> str:
    """Cases that fail at one place are one fault."""
    frames = [line.strip() for line in outcome.fault.splitlines() if "fgmoe_dist" in line and line.startswith("  File")]
    return f"{outcome.target} {outcome.end} {frames[-1] if frames else outcome.fault[-100:]}"


def _write_down(outcome, work: Path, out: Path) -> None:
    place = out / f"{outcome.target}-{outcome.seed}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(work, place / "input", symlinks=True)
    told = f"{outcome.target} {outcome.seed}: {outcome.change!r}\nagain: {outcome.command}\n\n{outcome.fault}\n"
    (place / "report.txt").write_bytes(told.encode(errors="backslashreplace"))
    last = (outcome.fault.strip().splitlines() or [""])[-1]
    print(f"FAULT {outcome.target} {outcome.seed}: {outcome.change!r}\n  {outcome.end}: {last[:200]!r}")
    print(f"  again: {outcome.command}\n  input: {place}", flush=True)


def _tell(ends: Counter, faults: Counter, count: int) -> None:
    rows: dict[str, Counter] = {}
    for (target, end), number in ends.items():
        rows.setdefault(target, Counter())[
            "right" if end == "right" else "refused" if end == "refused" else "faults"
        ] += number
    print(f"fuzz: {count} cases, {len(faults)} faults")
    for target, row in sorted(rows.items()):
        print(f"  {target:<20} right {row['right']:>5}   refused {row['refused']:>5}   faults {row['faults']:>5}")


if __name__ == "__main__":
    sys.exit(main())
