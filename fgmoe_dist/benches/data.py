"""Data loading, timed beside the field's file-by-file loader on full-size rooms in both layouts.

Two figures each: images per second of one core (processor time, warm disk cache), and the share of a step that training
waits when an accelerator takes a step of `--step-ms` (a sleep, so that it leaves the core to the loader).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from fgmoe_dist.benches.public_loader import PublicLoader
from fgmoe_dist.benches.timing import in_turn, medians
from fgmoe_dist.data.augment import TrainTransform
from fgmoe_dist.data.layouts import Layout, open_layout
from fgmoe_dist.data.shards import build_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import start_worker, train_batches
from fgmoe_dist.errors import UserError
from fgmoe_dist.machine import processor

# Native size as the archives have it, and the size that the field trains at.
SIZES_HW = {"nyud": ((425, 560), (448, 576)), "pascal": ((375, 500), (512, 512))}
BATCH = 4
WARM_STEPS = 8
MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layouts", nargs="+", choices=tuple(SIZES_HW), default=list(SIZES_HW), help="default: both")
    parser.add_argument("--root", type=Path, metavar="DIR", help="keep the rooms there for the next time")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="rooms rendered per layout (default 32)")
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="of N images, loaders in turn (default 7)")
    parser.add_argument("--step-ms", type=float, default=80, metavar="MS", help="a step of 4 images (default 80)")
    parser.add_argument("--steps", type=int, default=40, metavar="S", help="steps of the waiting test (default 40)")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="loader processes in it (default 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures by layout, printed and returned: medians over the rounds."""
    if args.images < BATCH or min(args.rounds, args.steps, args.workers) < 1:
        raise UserError(f"--images must be at least {BATCH}; --rounds, --steps and --workers at least 1")
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "machine": f"{processor()}, OpenCV {cv2.__version__}, torch {torch.__version__}",
        "images": args.images,
        "rounds": args.rounds,
    }
    try:
        with ExitStack() as stack:
            root = args.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for layout in args.layouts:
                figures[layout] = _bench(_prepare(layout, root, args.images), args)
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return figures


def _prepare(name: str, root: Path, images: int) -> Layout:
    from fgmoe_dist.rooms import write_rooms

    write_rooms(name, root / f"{name}-{images}", images, 1, seed=0, size=SIZES_HW[name][0])
    return open_layout(name, root / f"{name}-{images}")


def _bench(layout: Layout, args: argparse.Namespace) -> dict[str, Any]:
    shards = layout.root.parent / f"{layout.root.name}-shards"
    # A shard a lane, so that each is read once an epoch, as it is nearly so in a large set.
    build_shards(layout, "train", shards, samples_per_shard=args.images // BATCH)
    loaders = {"shards": _ours(layout, shards, 0), "files": _public(layout, 0)}
    turns = {name: partial(_seconds_per_image, batches, args.images // BATCH) for name, batches in loaders.items()}
    seconds = in_turn(turns, args.rounds)
    rates = {name: 1 / median for name, median in medians(seconds).items()}
    waits = {
        "shards": _wait_share(_ours(layout, shards, args.workers), args),
        "files": _wait_share(_public(layout, args.workers), args),
    }
    native_hw, size_hw = SIZES_HW[layout.dataset]
    print(
        f"{layout.dataset} {native_hw[0]}x{native_hw[1]} -> {size_hw[0]}x{size_hw[1]}, {', '.join(layout.tasks)}:\n"
        f"  images per second per core  shards {rates['shards']:6.1f}   files {rates['files']:6.1f}   "
        f"{rates['shards'] / rates['files']:.2f} times\n"
        f"  share of a step waited      shards {waits['shards']:6.1%}   files {waits['files']:6.1%}   "
        f"(loader processes: {args.workers}; steps of {BATCH} images in {args.step_ms:g} ms)"
    )
    return {
        "native": native_hw,
        "size": size_hw,
        "tasks": layout.tasks,
        "images_per_second_per_core": rates["shards"],
        "public_images_per_second_per_core": rates["files"],
        "ratio": rates["shards"] / rates["files"],
        "rounds_seconds_per_image": seconds,
        "wait_share": waits["shards"],
        "public_wait_share": waits["files"],
        "step_ms": args.step_ms,
        "workers": args.workers,
    }


def _seconds_per_image(batches: Iterator[dict], count: int) -> float:
    """Processor time of one core over the next `count` batches."""
    start = time.process_time()
    for _ in islice(batches, count):
        pass
    return (time.process_time() - start) / (count * BATCH)


def _ours(layout: Layout, shards: Path, workers: int) -> Iterator[dict]:
    transform = TrainTransform(SIZES_HW[layout.dataset][1], *MEAN_STD, layout.tasks)
    return train_batches(
        ShardSet.open(shards), layout.tasks, batch_size=BATCH, micro_batch_size=BATCH, rank=0, world=1, seed=0,
        workers=workers, transform=transform,
    )  # fmt: skip


def _public(layout: Layout, workers: int) -> Iterator[dict]:
    dataset = PublicLoader(layout, SIZES_HW[layout.dataset][1], *MEAN_STD)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0,
        worker_init_fn=start_worker() if workers else None,
    )  # fmt: skip
    return chain.from_iterable(repeat(loader))


def _wait_share(batches: Iterator[dict], args: argparse.Namespace) -> float:
    """Waiting for data as a share of all time, over steps that sleep."""
    waited = 0.0
    for _ in islice(batches, WARM_STEPS):
        time.sleep(args.step_ms / 1000)
    start = time.perf_counter()
    for _ in range(args.steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(args.step_ms / 1000)
    return waited / (time.perf_counter() - start)
