"""Boundary scoring timed beside a straightforward way: scikit-image thins, an assignment by least cost matches.

The straightforward way is also exact, so the counts must agree. `--port` adds a third: the matcher of the toolbox
itself, by the public compiled port of it, which is not quite exact. All run in turn on the same images, on one core.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree
from skimage.morphology import thin as skimage_thin

from fgmoe_dist.benches.port import PortRace
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.predictions import read_prediction
from fgmoe_dist.evaluation.score_files import shard_parts
from fgmoe_dist.machine import processor, versions
from fgmoe_dist.metrics.boundary.counts import THRESHOLDS_T, boundary_counts
from fgmoe_dist.metrics.boundary.nms import suppress_non_maxima
from fgmoe_dist.metrics.meter import check_prediction
from fgmoe_dist.progress import track
from fgmoe_dist.tasks.edge import Edge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="425x560", metavar="HxW", help="size of drawn maps (default 425x560, NYUD's)")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="maps to score (default 4)")
    parser.add_argument("--max-dist", type=float, default=0.011, metavar="D", help="radius / diagonal (default 0.011)")
    parser.add_argument(
        "--every", type=int, default=10, metavar="K", help="time the slow ways at every K-th threshold (default 10)"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="in place of drawn maps the first of DIR/edge/<id>.png, as `fgmoe evaluate --predictions DIR` saves them",
    )
    parser.add_argument("--shards", metavar="WHERE", help="labels of --predictions: a shard folder or pattern")
    parser.add_argument(
        "--port", metavar="PYTHON", help="also time the matcher of pyEdgeEval, which this interpreter can import"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures, printed and returned; seconds are processor time of one core for all 101 thresholds of an image."""
    if args.images < 1 or args.every < 1:
        raise UserError(f"--images is {args.images} and --every {args.every}; both are counts, 1 or more")
    some_T = np.arange(len(THRESHOLDS_T))[:: args.every]
    race = PortRace(args.port, some_T) if args.port else None
    fast, slow, sizes, worst = [], [], set(), 0
    for probability_HW, truth_HW in track(islice(_maps(args), args.images), "images", args.images):
        start = time.process_time()
        counts = boundary_counts(probability_HW, truth_HW, args.max_dist)
        middle = time.process_time()
        matched = straightforward_counts(probability_HW, truth_HW, args.max_dist, THRESHOLDS_T[some_T])
        slow.append((time.process_time() - middle) * len(THRESHOLDS_T) / len(some_T))
        fast.append(middle - start)
        sizes.add(truth_HW.shape)
        worst = max(worst, int(np.abs(counts.matched_T[some_T] - matched).max()))
        if race:
            race.add(probability_HW, truth_HW, args.max_dist, counts)
    if not fast:
        raise UserError(f"--shards {args.shards} has no image with a boundary label; name shards of the task edge")
    mean_fast, mean_slow = float(np.mean(fast)), float(np.mean(slow))
    figures = {
        "maps": "saved predictions" if args.predictions else "drawn",
        "sizes": sorted(sizes),
        "images": len(fast),
        "max_dist": args.max_dist,
        "thresholds": len(THRESHOLDS_T),
        "seconds_per_image": mean_fast,
        "seconds_of_each_image": fast,
        "straightforward_seconds_per_image": mean_slow,
        "straightforward_seconds_of_each_image": slow,
        "straightforward_thresholds_timed": len(some_T),
        "ratio": mean_slow / mean_fast,
        "largest_difference_in_matched_pixels": worst,
        "machine": {"processor": processor(), **versions("numpy", "scipy", "scikit-image")},
    }
    print(
        f"boundary, {len(fast)} images, 101 thresholds: {mean_fast:.2f} s per image; assignment by least cost "
        f"{mean_slow:.1f} s, {mean_slow / mean_fast:.0f} times slower; matched pixels differ by {worst} at most"
    )
    if race:
        figures["port"] = port = race.figures(mean_fast)
        print(
            f"pyEdgeEval {port['versions']['pyEdgeEval']}: its matching alone {port['matching_seconds_per_image']:.1f} "
            f"s per image, {port['ratio']:.0f} times slower; odsF {port['odsF']:.3f} here, "
            f"{' and '.join(f'{value:.3f}' for value in port['odsF_of_the_port'])} in two runs of the port"
        )
    return figures


def _maps(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(uint8 prediction, thinned truth) of one image after another."""
    if bool(args.predictions) != bool(args.shards):
        raise UserError("--predictions and --shards go together: maps to score, and the labels of the same images")
    if args.predictions:
        edge = Edge("edge", args.max_dist)
        for part in shard_parts(ShardSet.open(args.shards)):
            for sample in part.samples(["edge"]):
                if (truth_HW := sample.get(edge.truth_key)) is not None:
                    map_HW = read_prediction(args.predictions, edge, sample["id"])
                    check_prediction(map_HW, "edge", sample["id"], truth_HW.shape, np.uint8, "uint8(255 * probability)")
                    yield map_HW, truth_HW
        return
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", args.size)
    if not match:
        raise UserError(f"--size is {args.size!r}; give height x width in pixels, as in 425x560")
    for seed in count():
        yield scene(*map(int, match.groups()), seed)


def straightforward_counts(probability_HW, truth_HW, max_dist: float, thresholds) -> np.ndarray:
    """Matched pixels at each threshold when a pair costs its distance and a pixel left alone 100 radii."""
    radius = max_dist * float(np.hypot(*truth_HW.shape))
    truth = cKDTree(np.argwhere(truth_HW))
    ridge_HW = suppress_non_maxima(probability_HW)
    matched = []
    for threshold in thresholds:
        predicted = np.argwhere(skimage_thin(ridge_HW > threshold))
        if not len(predicted) or not truth.n:
            matched.append(0)
            continue
        pairs = cKDTree(predicted).sparse_distance_matrix(truth, radius, output_type="ndarray")
        cost = sparse.csr_array((pairs["v"] + 1, (pairs["i"], pairs["j"])), shape=(len(predicted), truth.n))
        alone = sparse.eye_array(len(predicted)) * (100 * radius + 1)
        _, column = min_weight_full_bipartite_matching(sparse.csr_array(sparse.hstack([cost, alone])))
        matched.append(int((column < truth.n).sum()))
    return np.array(matched)


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 prediction, bool thinned truth): outlines of warped regions, blurred, displaced and drowned in noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]

    def bend(pixels: float) -> np.ndarray:
        return pixels * 20 * ndimage.gaussian_filter(rng.normal(size=(height, width)), 10)

    centres = rng.uniform(0, 1, (height * width // 4000 + 6, 2)) * [height, width]
    warped = np.stack([y + bend(4), x + bend(4)], -1).reshape(-1, 2)
    region = cKDTree(centres).query(warped)[1].reshape(height, width)
    edge = np.zeros((height, width), bool)
    edge[:, :-1] |= region[:, :-1] != region[:, 1:]
    edge[:-1] |= region[:-1] != region[1:]
    truth = skimage_thin(edge)
    distance = ndimage.distance_transform_edt(~truth)
    distance = ndimage.map_coordinates(distance, [y + bend(2), x + bend(2)], order=1, mode="nearest")
    strength = ndimage.gaussian_filter(rng.uniform(2, 8, len(centres))[region], 3)
    noise = 5 * ndimage.gaussian_filter(rng.normal(size=(height, width)), 2)
    logit = strength * np.exp(-((distance / 3) ** 2)) - 3.5 + noise
    return (255 / (1 + np.exp(-logit))).astype(np.uint8), truth
