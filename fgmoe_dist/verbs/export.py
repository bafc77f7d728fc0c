"""Write a trained model as one file that predicts without DeepSpeed, and check that it does.

fgmoe export --checkpoint runs/demo --format pt2 --output demo.pt2

safetensors  weights under plain names, configuration beside them; `fgmoe_dist.export.load.load_exported` reads it
pt2          torch.export: runs with torch alone
onnx         runs with onnxruntime alone; needs pip install 'fgmoe_dist[export]'

All take normalised images [B, 3, H, W] of the network's input size and give the raw output of each task, in fp32. The
file is run in a fresh process and compared with the model; it takes its name only if they agree.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Iterator

from fgmoe_dist.arguments import add_checkpoint, add_json, add_output, check_outputs
from fgmoe_dist.errors import UserError
from fgmoe_dist.export import FORMATS
from fgmoe_dist.files import whole_file, write_json
from fgmoe_dist.progress import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write, see above")
    add_output(parser, "--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=1e-4,
        metavar="T",
        help="greatest difference allowed, as a share of the output's greatest magnitude (default 1e-4)",
    )
    add_json(parser, "what was exported and the differences")


def _tolerance(text: str) -> float:
    """NaN is refused: no difference is above it."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no share; give a number from 0 on, such as 1e-4")
    return value


def run(args: argparse.Namespace) -> None:
    check_outputs(args)

    from fgmoe_dist.checkpoints.checkpoint import load_model
    from fgmoe_dist.export.verify import differences
    from fgmoe_dist.export.write import check_can_export, convert_model

    tell(f"loading {args.checkpoint} and the encoder's weights ...")
    model, config, state = load_model(args.checkpoint, kernel="reference")
    model = model.float()
    check_can_export(model, config, args.format)
    started = time.perf_counter()
    tell(f"converting step {state.step} to {args.format}{LENGTHS[args.format]} ...")
    write = convert_model(model, state, args.format)
    with contextlib.suppress(_Differs), _blaming(args.output), whole_file(args.output) as beside:
        write(beside)
        seconds = time.perf_counter() - started
        tell("running the file in a fresh process, without DeepSpeed, and comparing it with the model ...")
        found = differences(model, args.format, beside)
        worst = max(difference.relative for difference in found.values())
        if worst > args.tolerance:
            raise _Differs
    for task, difference in found.items():
        print(
            f"{task}: greatest difference {difference.greatest:.2e} where the output reaches {difference.magnitude:.3g}"
        )
    if args.json:
        _report(args, state.step, found, worst)
    if worst > args.tolerance:
        print(f"error: the exported model differs by {worst:.2e} of the output, above --tolerance {args.tolerance:g};"
              f" {args.output} was not written", file=sys.stderr)  # fmt: skip
        raise SystemExit(1)
    size = args.output.stat().st_size / 2**20
    print(f"{args.format} of step {state.step}, {size:.1f} MiB, in {seconds:.0f} s: {args.output}")


# How long a conversion takes, where it is not over at once.
LENGTHS = {"safetensors": "", "pt2": ", which takes a minute or so", "onnx": ", which takes some minutes"}


class _Differs(Exception):
    """The file does not compute what the model does, so that it must not take its name."""


@contextlib.contextmanager
def _blaming(output: Path) -> Iterator[None]:
    """Whatever fails within is a matter of the disk, and the user's to mend."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"--output {output}: cannot be written ({what}); make room, or name another file") from None


def _report(args: argparse.Namespace, step: int, found: dict, worst: float) -> None:
    figures = {
        "format": args.format,
        "output": str(args.output),
        "step": step,
        "tolerance": args.tolerance,
        "relative_difference": worst,
        "tasks": {task: difference._asdict() for task, difference in found.items()},
    }
    write_json(args.json, figures)
