"""How far the predictions of `fgmoe plan` are off: three configurations on 1, 2 and 4 ranks of this machine.

The machine's profile is measured first, unless --machine names one taken on this machine.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from fgmoe_dist.benches import machine as bench_machine
from fgmoe_dist.benches.step import add_layout_arguments, measure_layouts, step_layouts

SMALL = {"encoder": {"name": "vit_tiny_patch16_224", "weights": "none"}, "train": {"micro_batch_size": 2}}

# Small enough for a laptop, and each heavy in another part: the encoder, the dense decoder, the experts.
CASES: dict[str, dict[str, Any]] = {
    "encoder": {
        "data": {"image_size": [112, 154]},
        "encoder": {"name": "vit_small_patch14_dinov2", "weights": "none"},
        "decoder": {"channels": 96, "stride": 7, "mixer_depth": 1},
        "experts": {"hidden": 128},
        "train": {"micro_batch_size": 2},
    },
    "decoder": {**SMALL, "data": {"image_size": [128, 192]}, "decoder": {"channels": 256, "stride": 4}},
    "experts": {
        **SMALL,
        "data": {"image_size": [128, 192]},
        "decoder": {"channels": 128, "stride": 4, "mixer_depth": 1, "blocks": 2},
        "experts": {"count": 8, "split": 8, "hidden": 512, "top_k": 4, "shared": 1},
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machine", type=Path, metavar="FILE", help="profile of this machine (default: measured first)"
    )  # fmt: skip
    parser.add_argument(
        "--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="configurations (default: all three)"
    )
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """By case: the figures of every layout, and how good the prediction is and whether it picks the right layout."""
    from fgmoe_dist.config import build_config
    from fgmoe_dist.planning.profile import read_machine

    if args.machine:
        machine = read_machine(args.machine)
    else:
        machine = bench_machine.profile(args.ranks)
    figures: dict[str, Any] = {"machine": machine.name, "versions": machine.versions, "cases": {}}
    for name in args.cases:
        print(f"{name}, measured (predicted):", flush=True)
        config = build_config(CASES[name])
        layouts = step_layouts(args.ranks, config.experts.routed)
        found = measure_layouts(config, layouts, args.steps, True, machine)["layouts"]
        figures["cases"][name] = {"config": CASES[name], "layouts": found, **verdict(found)}
        print(f"  {_describe(figures['cases'][name])}", flush=True)
    return figures


def verdict(layouts: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst error of seconds and memory, and by ranks the ep_size measured and predicted to be fastest."""
    errors = {key: [abs(entry["error"][key]) for entry in layouts] for key in ("seconds", "memory_bytes")}
    fastest = {}
    for ranks in {entry["ranks"] for entry in layouts}:
        of = [entry for entry in layouts if entry["ranks"] == ranks]
        best = {
            kind: min(of, key=lambda entry, kind=kind: entry[kind]["seconds"]) for kind in ("measured", "predicted")
        }
        fastest[str(ranks)] = {
            **{kind: entry["ep_size"] for kind, entry in best.items()},
            "loss": best["predicted"]["measured"]["seconds"] / best["measured"]["measured"]["seconds"] - 1,
        }
    return {
        "median_error": {key: statistics.median(values) for key, values in errors.items()},
        "worst_error": {key: max(values) for key, values in errors.items()},
        "fastest_ep_size": fastest,
    }


def _describe(case: dict[str, Any]) -> str:
    median, worst, fastest = case["median_error"], case["worst_error"], case["fastest_ep_size"]
    right = sum(one["measured"] == one["predicted"] for one in fastest.values())
    return (
        f"error of seconds {median['seconds']:.0%} (worst {worst['seconds']:.0%}), of memory"
        f" {median['memory_bytes']:.0%} (worst {worst['memory_bytes']:.0%}); fastest ep_size right for {right} of"
        f" {len(fastest)} numbers of ranks, at most {max(one['loss'] for one in fastest.values()):.0%} lost"
    )
