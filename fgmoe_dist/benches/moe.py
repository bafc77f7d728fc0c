"""One block's routed experts timed, forward and backward, beside stock layers, replicas and a dense MLP.

Each rank has `tokens` tokens per task. In every world (a number of ranks, which share this machine's cores) all
contenders run in turn in one process group, on the same tokens, routers and experts:

    dense          the bound: an MLP per task with as many hidden units as the k experts of a token have together
    kernel         our experts alone, all on this rank, with gates given: no router, nothing sent
    fused          our layer: routers, dispatch, experts, combination; ep_size is the number of ranks
    replicas       the same with ep_size 1, and the experts' gradients summed over ranks
    deepspeed      `deepspeed.moe.layer.MoE`, one per task, dropless; its outputs are checked against ours first
    fairscale      `fairscale.nn.moe.MOELayer`, one per task; top-2 only, so points of k = 2 compare all with it. It
                   draws second experts at random and drops tokens

Started by torchrun it measures with the ranks it is given.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.machine import processor, versions

if TYPE_CHECKING:
    from rich.table import Table

    from fgmoe_dist.benches.contenders import Point

GRIDS = {
    "quick": {"tasks": [4], "experts": [16, 64], "tokens": [1024], "ranks": [2], "dtype": ["fp32"], "rounds": 3},
    "usual": {"tasks": [4], "experts": [16, 64, 256], "tokens": [1024, 4096], "ranks": [1, 2, 4]},
    "full": {"tasks": [4, 5], "experts": [16, 64, 256], "tokens": [1024, 4096, 16128], "ranks": [1, 2, 4]},
}
# fairscale's gates fill a mask of tokens x experts x capacity, 2 N^2 numbers per task; beyond this it takes gigabytes.
FAIRSCALE_TOKENS = 1024
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        dest="grid",
        action="store_const",
        const="quick",
        help="a few points: a minute, in place of about ten",
    )
    size.add_argument("--full", dest="grid", action="store_const", const="full", help="the whole grid, an hour or more")
    parser.set_defaults(grid="usual")
    for name, what in (
        ("tasks", "tasks of the block"),
        ("experts", "fine experts per task"),
        ("tokens", "tokens per task on each rank"),
        ("ranks", "numbers of ranks, one world after the other"),
    ):
        usual = " ".join(map(str, GRIDS["usual"][name]))
        parser.add_argument(f"--{name}", type=int, nargs="+", metavar="N", help=f"{what} (default {usual})")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), help="precisions (default both; on GPUs bf16)")
    parser.add_argument("--rounds", type=int, metavar="R", help="rounds in which each contender is timed (default 5)")
    parser.add_argument("--top-k", type=int, default=4, metavar="K", help="experts of a token (default 4)")
    parser.add_argument("--channels", type=int, default=256, metavar="C", help="width of a token (default 256)")
    parser.add_argument("--hidden", type=int, default=64, metavar="H", help="hidden size of an expert (default 64)")
    parser.add_argument("--kernels", nargs="+", default=["auto"], metavar="NAME", help="of our layer (default auto)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--no-fairscale", action="store_true", help="leave out the points of k = 2 with fairscale")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures, printed and returned; under a launcher rank 0 alone writes them."""
    device = _device(args.device)
    from fgmoe_dist.benches.contenders import check_kernels, measure_points
    from fgmoe_dist.benches.ranks import on_ranks
    from fgmoe_dist.ranks import process_group

    check_kernels(tuple(args.kernels))
    grid = _grid(args, device)
    points: list[dict[str, Any]] = []
    if "RANK" in os.environ:
        with process_group() as ranks:
            places = _points(args, grid, ranks.world)
            points = _entries(ranks.world, places, measure_points(ranks, places, grid["rounds"]))
            first = ranks.is_first
    else:
        first = True
        for world in grid["ranks"]:
            places = _points(args, grid, world)
            points += _entries(world, places, on_ranks(world, measure_points, places, grid["rounds"]))
    figures = {"machine": _machine(device), "grid": grid, "points": points, **summary(points)}
    if first:
        _print(figures)
    else:
        args.json = None
    return figures


def _device(wanted: str | None) -> str:
    import torch

    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the ranks, which take a GPU where they see one
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; leave it out to measure the CPU")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _grid(args: argparse.Namespace, device: str) -> dict[str, Any]:
    grid = {"rounds": 5, "dtype": ["bf16"] if device == "cuda" else ["fp32", "bf16"], **GRIDS[args.grid]}
    grid.update({key: value for key in grid if (value := getattr(args, key)) is not None})
    for key in ("tasks", "experts", "tokens", "ranks"):
        grid[key] = sorted(set(grid[key]))
    if "RANK" in os.environ:
        grid["ranks"] = [int(os.environ["WORLD_SIZE"])]
    grid.update({key: getattr(args, key) for key in ("top_k", "channels", "hidden")})
    for key, value in grid.items():
        if key != "dtype" and min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{key.replace('_', '-')} is {value}; it has to be 1 or more")
    if grid["top_k"] > grid["experts"][0]:
        raise UserError(f"--top-k {grid['top_k']} is more than the {grid['experts'][0]} experts of --experts")
    for experts, ranks in product(grid["experts"], grid["ranks"]):
        if experts % ranks:
            raise UserError(f"--experts {experts} cannot be shared by --ranks {ranks}; give a multiple")
    if "grouped" in args.kernels:
        _check_alignment(grid)
    return grid


def _check_alignment(grid: dict[str, Any]) -> None:
    from fgmoe_dist.experts.kernels import unfit
    from fgmoe_dist.experts.kernels.fitness import Place

    for key, precision in product(("channels", "hidden"), grid["dtype"]):
        if reason := unfit("ffn", "grouped", Place("", precision, {f"--{key}": grid[key]})):
            raise UserError(f"--{key} {grid[key]}: --kernels grouped {reason}, or leave grouped out")


def _points(args: argparse.Namespace, grid: dict[str, Any], world: int) -> list[Point]:
    """Points of one world; those of k = 2 with fairscale last."""
    from fgmoe_dist.benches.contenders import Point

    same = {"channels": grid["channels"], "hidden": grid["hidden"], "kernels": tuple(args.kernels)}
    places = list(product(grid["dtype"], grid["tasks"], grid["tokens"], grid["experts"]))
    points = [Point(dtype, t, e, n, grid["top_k"], **same) for dtype, t, n, e in places]
    if not args.no_fairscale and "fp32" in grid["dtype"]:  # its products mix fp32 with what it is given
        first = grid["tasks"][0]
        pairs = [(t, n, e) for dtype, t, n, e in places if dtype == "fp32" and t == first and e >= 2]
        points += [Point("fp32", t, e, n, 2, **same, fairscale=True) for t, n, e in pairs if n <= FAIRSCALE_TOKENS]
    return points


def _entries(world: int, places: list[Point], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each point with its figures and ratios."""
    entries = []
    for place, figures in zip(places, found):
        seconds = figures["seconds"]
        entries.append(
            {
                "ranks": world,
                "ep_size": world,
                **asdict(place),
                **figures,
                "to_bound": {name: value / seconds["dense"] for name, value in seconds.items()},
                "times_faster_than_deepspeed": {name: seconds["deepspeed"] / value for name, value in seconds.items()},
            }
        )
    return entries


def summary(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Flatness over the number of experts, memory over ep_size, and where replicas beat expert parallelism."""
    return {"flatness": _flatness(points), "memory": _memory(points), "replicas": _replicas(points)}


def _flatness(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds with the most experts per task over those with the fewest, all else equal."""
    keys = ("ranks", "dtype", "tasks", "tokens", "top_k", "fairscale")
    series: dict[tuple, dict[int, dict]] = {}
    for point in points:
        series.setdefault(tuple(point[key] for key in keys), {})[point["experts"]] = point["seconds"]
    flat = []
    for place, by_experts in series.items():
        few, many = min(by_experts), max(by_experts)
        if few < many:
            ratio = {name: by_experts[many][name] / by_experts[few][name] for name in by_experts[few]}
            flat.append({**dict(zip(keys, place)), "from": few, "to": many, "ratio": ratio})
    return flat


def _memory(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Experts' bytes per rank by ep_size, and as a share of those at the smallest ep_size measured."""
    keys = ("dtype", "tasks", "experts")
    sizes: dict[tuple, dict[int, int]] = {}
    for point in points:
        memory = point["memory"]
        total = memory["expert_parameter_bytes"] + memory["expert_optimizer_bytes"]
        sizes.setdefault(tuple(point[key] for key in keys), {})[point["ep_size"]] = total
    return [
        {
            **dict(zip(keys, place)),
            "bytes_by_ep_size": by_ep,
            "share_by_ep_size": {ep: total / by_ep[min(by_ep)] for ep, total in by_ep.items()},
        }
        for place, by_ep in sizes.items()
    ]


def _replicas(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of expert parallelism over those of replicas with the same ranks: above 1 it does not pay in time."""
    keys = ("ranks", "dtype", "tasks", "experts", "tokens", "top_k", "fairscale")
    found = []
    for point in points:
        seconds = point["seconds"]
        for name in seconds:
            if name.startswith("replicas:"):
                kernel = name.partition(":")[2]
                ratio = seconds[f"fused:{kernel}"] / seconds[name]
                place = {key: point[key] for key in keys}
                found.append({**place, "kernel": kernel, "ratio": ratio, "expert_parallelism_pays": ratio < 1})
    return found


def _machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": versions("torch", "deepspeed", "fairscale", "triton"),
    }


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=max(130, Console().width))
    console.print(_table(figures["points"]))
    for flat in figures["flatness"]:
        place = (
            f"{flat['ranks']} rank(s), {flat['dtype']}, T {flat['tasks']}, {flat['tokens']} tokens, k {flat['top_k']}"
            + (", beside fairscale" if flat["fairscale"] else "")
        )
        ratios = ", ".join(f"{_heading(name)} {ratio:.2f}" for name, ratio in flat["ratio"].items())
        print(f"{place}: from {flat['from']} to {flat['to']} experts seconds times {ratios}")
    for memory in figures["memory"]:
        sizes = ", ".join(f"ep_size {ep} {size / MIB:.0f} MiB" for ep, size in memory["bytes_by_ep_size"].items())
        place = f"{memory['dtype']}, T {memory['tasks']}, {memory['experts']} experts"
        print(f"weights and Adam of the experts, per rank, {place}: {sizes}")
    lost = [place for place in figures["replicas"] if not place["expert_parallelism_pays"]]
    if figures["replicas"]:
        print(f"replicas with summed gradients are faster at {len(lost)} of {len(figures['replicas'])} points")


def _table(points: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="Forward + backward of one block's routed experts, times the dense bound", padding=0)
    names = list(dict.fromkeys(name for point in points for name in point["seconds"] if name != "dense"))
    fused = [name for name in names if name.startswith("fused:")]
    headings = ["ranks", "dtype", "T", "experts", "tokens", "k", "dense ms", *map(_heading, names)]
    for heading in (*headings, *(f"DeepSpeed / {_heading(name)}" for name in fused)):
        table.add_column(heading, justify="right")
    for point in points:
        place = [str(point[key]) for key in ("ranks", "dtype", "tasks", "experts", "tokens", "top_k")]
        ratios = [f"{point['to_bound'][name]:.2f}" if name in point["to_bound"] else "" for name in names]
        faster = [f"{point['times_faster_than_deepspeed'][name]:.2f}" for name in fused]
        table.add_row(*place, f"{1000 * point['seconds']['dense']:.1f}", *ratios, *faster)
    return table


def _heading(name: str) -> str:
    """`fused:cpu` as `fused (cpu)`, broken where a narrow column breaks it."""
    what, _, kernel = name.partition(":")
    return what + (f" ({kernel})" if kernel else "")
