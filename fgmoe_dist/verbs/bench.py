"""Time one part of the system beside the usual way to do the same.

fgmoe bench moe --json moe.json
fgmoe bench machine --json machine.json
fgmoe bench step --config configs/demo.yaml --ranks 1 2 --against machine.json experts.split=8
"""

from __future__ import annotations

import argparse
import importlib

from fgmoe_dist.arguments import add_json, add_verb, check_outputs
from fgmoe_dist.files import write_json

# Each module offers `add_arguments(parser)` and `run(args) -> figures`.
BENCHES = {
    "data": ("fgmoe_dist.benches.data", "reading and augmenting full-size samples"),
    "boundary": ("fgmoe_dist.benches.boundary", "boundary scoring of an image at 101 thresholds"),
    "moe": ("fgmoe_dist.benches.moe", "a block's routed experts beside stock layers and a dense MLP"),
    "mlore": ("fgmoe_dist.benches.mlore", "MLoRE's low-rank experts one by one, as one wide expert, and merged"),
    "machine": ("fgmoe_dist.benches.machine", "a profile of this machine, for fgmoe plan"),
    "step": ("fgmoe_dist.benches.step", "training steps of a configuration, by stage, beside their plan"),
    "busy": ("fgmoe_dist.benches.busy", "training steps beside other work, by how threads wait"),
    "decoders": ("fgmoe_dist.benches.decoders", "every decoder and preset on the same images, for docs/decoders.md"),
    "plan": ("fgmoe_dist.benches.plan", "the error of fgmoe plan on this machine"),
}

EXAMPLES = {
    "step": " --config configs/demo.yaml --ranks 1 2",
    "busy": " --config configs/demo.yaml",
    "decoders": " --config configs/nyud_vitb.yaml --only fgmoe multi_task",
    "machine": " --ranks 1 2",
    "plan": " --ranks 1 2",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(dest="bench", required=True, metavar=" | ".join(BENCHES))
    for name, (module, what) in BENCHES.items():
        one = add_verb(benches, name, what, f"fgmoe bench {name}{EXAMPLES.get(name, '')} --json {name}.json")
        importlib.import_module(module).add_arguments(one)
        add_json(one)


def run(args: argparse.Namespace) -> None:
    check_outputs(args)
    figures = importlib.import_module(BENCHES[args.bench][0]).run(args)
    if args.json:
        write_json(args.json, figures)
