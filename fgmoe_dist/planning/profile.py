"""A machine as `fgmoe bench machine` found it, and the time it takes for an operation or a collective.

Rates are curves over a size that decides them (a product's smallest side, rows per expert), interpolated between the
sizes measured in logarithms of both, flat beyond. They are measured with as many ranks at once as a node runs, since
ranks share caches, memory and, on a CPU, the cores.
"""

from __future__ import annotations

import json
import math
from bisect import bisect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from fgmoe_dist.errors import UserError

FORMAT = 1
Curve = list[tuple[float, float]]  # (size, units per second), in rising order of size


@dataclass(frozen=True)
class Compute:
    """One rank's speed beside the others of its node."""

    threads: int
    overhead_s: float  # of an operation, however small
    rates: dict[str, dict[str, Curve]]  # by precision and kind of operation

    def seconds(self, kind: str, precision: str, amount: float, size: float = 1, calls: int = 1) -> float:
        """Time for `amount` units (FLOPs, bytes, elements) in `calls` operations. UserError where not measured."""
        return amount / interpolate(self._rates(precision, kind), size) + calls * self.overhead_s

    def _rates(self, precision: str, kind: str) -> Curve:
        try:
            return self.rates[precision][kind]
        except KeyError:
            raise UserError(
                f"the machine profile has no rate of {kind} in {precision}; measure it again, with fgmoe bench machine"
                " --json FILE"
            ) from None

    def nearest_width(self, prefix: str, precision: str, channels: int, hidden: int) -> str:
        """The kind `prefix:CxH` measured at the widths nearest to these."""
        kinds = [kind for kind in self.rates[precision] if kind.startswith(f"{prefix}:")]

        if not kinds:
            self._rates(precision, prefix)

        def distance(kind: str) -> float:
            c, h = map(int, kind.rpartition(":")[2].split("x"))
            return abs(math.log(c / channels)) + abs(math.log(h / hidden))

        return min(kinds, key=distance)


@dataclass(frozen=True)
class Link:
    """One kind of collective over one kind of wire: a message costs `latency_s`, and its bytes take their number over
    `bytes_per_s`."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Links:
    """What a rank's wires give it while the others of its node use theirs."""

    all_to_all: Link
    all_reduce: Link
    overlap: float = 1.0  # share of an exchange that goes on while the rank computes


@dataclass(frozen=True)
class Machine:
    name: str
    device: str  # cpu | cuda
    cores: int  # of a node
    memory_bytes: int  # of a GPU, or of a node without
    base_bytes: int  # of a rank that has imported everything and built nothing
    pixels_per_s: float  # a loader process reads and augments
    versions: dict[str, str]
    compute: dict[int, Compute]  # by ranks per node
    links: dict[int, Links]  # by ranks per node
    internode: Optional[Links] = None
    internode_source: str = "unknown"  # measured | assumed | unknown

    def compute_at(self, ranks: int) -> Compute:
        """A rank's speed with `ranks` on its node; beyond what was measured, a CPU's cores are shared out."""
        measured = _nearest(self.compute, ranks)
        compute = self.compute[measured]
        slower = max(1.0, ranks / self.cores) / max(1.0, measured / self.cores) if self.device == "cpu" else 1.0
        if slower == 1.0:
            return compute
        rates = {
            precision: {kind: [(size, rate / slower) for size, rate in curve] for kind, curve in kinds.items()}
            for precision, kinds in compute.rates.items()
        }
        return Compute(compute.threads, compute.overhead_s * slower, rates)

    def links_at(self, ranks: int) -> Optional[Links]:
        return self.links[_nearest(self.links, ranks)] if self.links else None

    def memory_per_rank(self, ranks: int) -> float:
        return self.memory_bytes / ranks if self.device == "cpu" else self.memory_bytes


def interpolate(curve: Curve, size: float) -> float:
    """The rate at `size`: straight between measured points on double logarithmic paper, flat beyond the ends."""
    sizes = [point[0] for point in curve]
    i = bisect(sizes, size)
    if i in (0, len(curve)):
        return curve[min(i, len(curve) - 1)][1]
    (size0, rate0), (size1, rate1) = curve[i - 1], curve[i]
    share = math.log(size / size0) / math.log(size1 / size0)
    return rate0 ** (1 - share) * rate1**share


def fit_link(points: list[tuple[float, float, float]]) -> Link:
    """Least squares of the relative error of `messages * latency + bytes / rate` to `(messages, bytes, seconds)`."""
    # Divided by the seconds, the model is a * x + b * y = 1.
    rows = [(messages / seconds, size / seconds) for messages, size, seconds in points]
    xx, xy, yy = sum(x * x for x, _ in rows), sum(x * y for x, y in rows), sum(y * y for _, y in rows)
    x1, y1 = sum(x for x, _ in rows), sum(y for _, y in rows)
    determinant = xx * yy - xy * xy
    latency, inverse = (x1 * yy - y1 * xy) / determinant, (y1 * xx - x1 * xy) / determinant
    if latency < 0:  # noise: the wire's rate alone
        latency, inverse = 0.0, y1 / yy
    if inverse <= 0:
        latency, inverse = x1 / xx, 1e-15
    return Link(latency, 1 / inverse)


def read_machine(path: Path) -> Machine:
    """What `fgmoe bench machine --json` wrote. UserError if it is none of that."""
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--machine {path}: cannot be read ({error}); write one with fgmoe bench machine --json FILE"
        ) from None
    try:
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        return _machine(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--machine {path}: is no machine profile of this version ({error}); write one, into another file, with"
            f" fgmoe bench machine --json FILE"
        ) from None


def machine_json(machine: Machine) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(machine)}


def _machine(values: dict[str, Any]) -> Machine:
    compute = {
        int(ranks): Compute(
            one["threads"],
            one["overhead_s"],
            {p: {k: [tuple(point) for point in c] for k, c in kinds.items()} for p, kinds in one["rates"].items()},
        )
        for ranks, one in values.pop("compute").items()
    }
    links = {int(ranks): _links(one) for ranks, one in values.pop("links").items()}
    internode = values.pop("internode")
    machine = Machine(compute=compute, links=links, internode=_links(internode) if internode else None, **values)
    _check(machine)
    return machine


def _check(machine: Machine) -> None:
    """ValueError for what no machine has: nothing measured, or a number that is none or not positive."""
    if not machine.compute:
        raise ValueError("it has no rates")
    for name in ("cores", "memory_bytes", "pixels_per_s"):
        if not getattr(machine, name) > 0:
            raise ValueError(f"its {name} is {getattr(machine, name)}")
    for compute in machine.compute.values():
        for kinds in compute.rates.values():
            for kind, curve in kinds.items():
                if not curve or not all(number > 0 for point in curve for number in point):
                    raise ValueError(f"its rate of {kind} is {curve}")


def _links(values: dict[str, Any]) -> Links:
    return Links(Link(**values["all_to_all"]), Link(**values["all_reduce"]), values["overlap"])


def _nearest(measured: dict[int, Any], ranks: int) -> int:
    return min(measured, key=lambda known: (abs(math.log(known / ranks)), known))
