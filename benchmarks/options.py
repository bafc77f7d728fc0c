"""Which of FGMoE's options are worth having? Each alone, and all together, beside the defaults, on rendered rooms.

.venv/bin/python benchmarks/options.py

renders the rooms, caches the encoder's features of them, trains every variant from each of several seeds, in one
process, and writes scores and gains over the defaults (delta_m, by seed) into benchmarks/results/options.json and, as a
table, to the screen. An hour or so on one core; started again, it goes on where it was. So few rooms and steps
tell large differences only: of a gain, look how far apart the seeds of one variant are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from fgmoe_dist.files import write_json
from fgmoe_dist.machine import versions
from fgmoe_dist.metrics.delta_m import delta_m
from fgmoe_dist.tracking.compare import RunRecord, read_folder
from fgmoe_dist.tracking.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]

CHANNELS = 64
OPTIONS: dict[str, list[str]] = {
    "offsets": ["decoder.mixer_offsets=channel"],
    "aggregator": ["decoder.aggregator=conv"],
    "head": [f"decoder.head_channels={CHANNELS * 180 // 256}"],
    "tasks": ["experts.global_input=tasks"],
}
VARIANTS = {"defaults": [], **OPTIONS, "all": [setting for own in OPTIONS.values() for setting in own]}

# The demo's network, narrower, in one process, on cached features.
SMALL = [
    f"decoder.channels={CHANNELS}", "train.micro_batch_size=4", "train.checkpoint_every=0", "train.pictures=0",
    "parallel.ep_size=1", "tracking.uri=none",
]  # fmt: skip


def main() -> None:
    args = _arguments()
    work = ROOT / f"data/options/{args.train}+{args.val}"
    data = _prepare(work, args.train, args.val)
    records = {
        name: [_train(name, own, seed, args.steps, data, work) for seed in args.seeds] for name, own in VARIANTS.items()
    }
    found = {"rooms": {"train": args.train, "val": args.val}, "steps": args.steps, "seeds": args.seeds}
    found |= {
        "versions": versions("torch"),
        "config": "configs/demo.yaml",
        "settings": SMALL,
        "variants": _summary(records),
    }
    write_json(args.json, found)
    print(_table(found["variants"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=200, metavar="N", help="rooms to train on (default 200)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="rooms to score on (default 40)")
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="of 4 rooms each (default 150)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="SEED", help="default 0 1")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks/results/options.json", metavar="FILE", help="for the scores"
    )
    return parser.parse_args()


def _fgmoe(*arguments: object) -> None:
    command = [sys.executable, "-m", "fgmoe_dist.cli", *map(str, arguments)]
    print("$ fgmoe", *command[3:], flush=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _prepare(work: Path, train: int, val: int) -> list[str]:
    """Settings that name cached features of the training rooms, and the validation rooms' shards."""
    rooms, shards, features = work / "rooms", work / "shards", work / "features"
    data = [f"data.train={shards}/train", f"data.val={shards}/val"]
    if not rooms.is_dir():
        _fgmoe("rooms", "--layout", "nyud", "--out", rooms, "--train", train, "--val", val, "--seed", 1,
               "--size", "224x308")  # fmt: skip
    for split in ("train", "val"):
        if not (shards / split / "index.json").is_file():
            _fgmoe("shards", "build", "--dataset", "nyud", "--root", rooms, "--split", split, "--out", shards / split)
    if not (features / "index.json").is_file():
        _fgmoe("shards", "features", "--config", "configs/demo.yaml", *_sets(data), "--out", features, "--views", 1)
    return [f"data.train={features}", f"data.val={shards}/val"]


def _train(name: str, own: list[str], seed: int, steps: int, data: list[str], work: Path) -> RunRecord:
    folder = work / f"runs-{steps}" / f"{name}-{seed}"
    if not (folder / f"eval/{steps}.json").is_file():
        run = [f"run.dir={folder}", f"run.name={folder.name}", f"run.seed={seed}", f"train.steps={steps}"]
        _fgmoe("train", "--config", "configs/demo.yaml", "--resume", "never", *_sets([*SMALL, *data, *run, *own]))
    return read_folder(RunFolder(folder))


def _sets(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _summary(records: dict[str, list[RunRecord]]) -> dict[str, Any]:
    """Of each variant its settings, size, and by seed each task's headline and delta_m over the defaults'."""
    first = records["defaults"][0]
    lower = {task: headline["lower_is_better"] for task, headline in first.headlines.items()}
    metric = {task: headline["metric"] for task, headline in first.headlines.items()}

    def headlines(record: RunRecord) -> dict[str, float]:
        return {task: record.scores[task][name] for task, name in metric.items()}

    return {
        name: {
            "settings": VARIANTS[name],
            "trained_parameters": runs[0].model["trained"],
            "scores": {f"{task} {metric[task]}": [headlines(run)[task] for run in runs] for task in metric},
            "delta_m": [
                delta_m(headlines(run), headlines(base), lower) for run, base in zip(runs, records["defaults"])
            ],
        }
        for name, runs in records.items()
    }


def _table(variants: dict[str, Any]) -> str:
    """Markdown; a cell has each seed's value."""
    scores = next(iter(variants.values()))["scores"]
    lines = [["variant", "trained", *scores, "delta_m, %"], ["---"] * (3 + len(scores))]
    for name, variant in variants.items():
        cells = [" ".join(f"{value:.4g}" for value in values) for values in variant["scores"].values()]
        gains = " ".join(f"{gain:+.2f}" for gain in variant["delta_m"])
        lines.append([name, f"{variant['trained_parameters']:,.0f}", *cells, gains])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    main()
