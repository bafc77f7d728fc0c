"""Render the built-in data set of rooms into the folder layout of NYUDv2 or PASCALContext.

Same arguments, same bytes, whatever the number of workers; an interrupted run goes on where it stopped.

fgmoe rooms --layout nyud --out data/rooms --train 320 --val 60 --seed 1
fgmoe rooms --layout pascal --out data/pascal_rooms --train 100 --val 20 --size 375x500
"""

import argparse
import re
import time

from fgmoe_dist.arguments import add_json, add_output, check_outputs, count
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_json
from fgmoe_dist.outputs import ROOMS
from fgmoe_dist.rooms import LAYOUTS, write_rooms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--layout", required=True, choices=LAYOUTS, help="the archive to look like: its folders, its tasks"
    )
    add_output(parser, "--out", ROOMS, required=True, help="the data set's root folder, new or begun before")
    parser.add_argument("--train", required=True, type=int, help="number of training images")
    parser.add_argument("--val", required=True, type=int, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other rooms (default: %(default)s)")
    parser.add_argument("--size", default="256x336", metavar="HxW", help="pixels, height first (default: %(default)s)")
    parser.add_argument("--workers", type=count, help="processes (default: every core this process may use)")
    add_json(parser, "what was made, and how fast")


def run(args: argparse.Namespace) -> None:
    """Render the set; prints where it is."""
    size = _size(args.size)
    check_outputs(args)
    started = time.perf_counter()
    write_rooms(args.layout, args.out, args.train, args.val, args.seed, size, args.workers)
    seconds = time.perf_counter() - started
    print(f"{args.train} training and {args.val} validation rooms in {args.out} ({seconds:.1f} s)")
    if args.json:
        figures = {key: getattr(args, key) for key in ("layout", "train", "val", "seed")}
        figures |= {"out": str(args.out), "size": size, "seconds": round(seconds, 3)}
        write_json(args.json, figures)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--size is {text!r}; give HEIGHTxWIDTH in pixels, e.g. 256x336")
    return int(match[1]), int(match[2])
