"""Data sets on disk and shards: what reads them, and what must hold of what it makes of them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fgmoe_dist.data.layouts import open_layout
from tests.archives import write_nyud, write_pascal
from tests.fuzz.harness import Target, must
from tests.fuzz.mutate import one_of, spoil_bytes, spoil_file, spoil_one, spoil_tree
from tests.miniatures import CONFIGS, WRITERS

# Data sets on disk.


def _check_sample(layout: Any, sample: dict[str, np.ndarray]) -> None:
    for key, stored in sample.items():
        if key != "image":
            must(layout.labels[key].strange(stored).size == 0, f"{key} holds values out of its range")


def _read_all(layout: Any) -> None:
    for split in layout.splits:
        for id_ in layout.ids(split)[:4]:
            _check_sample(layout, layout.stored(id_))


def _archive(name: str, write: Callable[[Path], Path], patterns: tuple[str, ...], weight: int) -> Target:
    def use(folder: Path) -> None:
        layout = open_layout(name, folder)
        for split in layout.splits:
            for id_ in layout.ids(split):
                _check_sample(layout, layout.stored(id_))

    def prepare(folder: Path) -> None:
        folder.rmdir()
        write(folder)

    return Target(name, prepare, spoil_one(*patterns), use, weight)


def _described(name: str) -> Target:
    def prepare(folder: Path) -> None:
        WRITERS[name](folder / "data")
        values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        if name == "taskonomy":
            values["splits"] = {"train": "rgb/allensville", "val": ["rgb/darden"]}
        (folder / "set.yaml").write_text(yaml.safe_dump({**values, "root": "data"}, sort_keys=False))

    def spoil(folder: Path, rng: random.Random) -> str:
        return spoil_file(folder / "set.yaml" if rng.random() < 0.6 else one_of(folder / "data", rng, "**/*.*"), rng)

    return Target(f"described_{name}", prepare, spoil, lambda folder: _read_all(open_layout(folder / "set.yaml")), 4)


def _write_archive(folder: Path) -> None:
    folder.rmdir()
    write_nyud(folder)


def _use_check(folder: Path) -> None:
    from fgmoe_dist.data.check import check_data_set

    report = check_data_set("nyud", folder)
    must(all(len(fault.splitlines()) == 1 for fault in report.faults), "a fault of several lines")
    json.dumps(report.figures())


# Shards.


def _write_shards(folder: Path) -> None:
    from fgmoe_dist.data.shards import build_shards

    root = folder.parent / "for_shards"
    shutil.rmtree(root, ignore_errors=True)
    build_shards(open_layout("nyud", write_nyud(root)), "train", folder / "shards", samples_per_shard=2)
    truth = {key: value for key, value in _samples(folder / "shards").items()}
    np.savez(folder / "truth.npz", **truth)


def _samples(where: Path) -> dict[str, np.ndarray]:
    from fgmoe_dist.data.shardset import ShardSet, decode_sample, read_shard

    shardset = ShardSet.open(where)
    found = {}
    for shard in shardset.shards:
        for id_, entries in read_shard(shard).items():
            for key, value in decode_sample(shard, id_, entries, tuple(entries)).items():
                if key != "id":
                    found[f"{id_}.{key}"] = value
    return found


def _use_shards(folder: Path) -> None:
    from fgmoe_dist.data.shards import summary, verify_shards
    from fgmoe_dist.data.shardset import ShardSet
    from fgmoe_dist.files import plain
    from fgmoe_dist.tasks import create_tasks

    shardset = ShardSet.open(folder / "shards")
    json.dumps(plain(summary(shardset)), allow_nan=False)
    create_tasks(list(shardset.tasks), shardset)
    faults = verify_shards(folder / "shards")
    must(all(len(fault.splitlines()) == 1 for fault in faults), "a fault of several lines")
    found = _samples(folder / "shards")  # what verify has doubts about may raise, or read as something else
    if not faults:
        with np.load(folder / "truth.npz") as truth:
            for key in found.keys() & set(truth.files):
                must(np.array_equal(found[key], truth[key]), f"{key} has changed and verify says whole")


def _spoil_index_or_tar(folder: Path, rng: random.Random) -> str:
    path = folder / "shards/index.json"
    if rng.random() < 0.5:
        return spoil_file(path if rng.random() < 0.8 else one_of(folder, rng, "shards/*.tar"), rng)
    # An index that agrees with a spoilt tar, so that what lies behind the checksum is read.
    index = json.loads(path.read_text())
    tar = one_of(folder, rng, "shards/*.tar")
    data, told = spoil_bytes(tar.read_bytes(), rng)
    tar.write_bytes(data)
    for record in index["shards"]:
        if record["name"] == tar.name:
            record.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    index_of_it, what = spoil_tree(index, rng) if rng.random() < 0.2 else (index, "")
    path.write_text(json.dumps(index_of_it))
    # The checksum is right, so nobody can tell a flipped pixel; whatever is read must still be in range.
    (folder / "truth.npz").unlink()
    np.savez(folder / "truth.npz")
    return f"{tar.name}: {told}, and its checksum; {what}"


DATA_TARGETS = [
    _archive("nyud", write_nyud, ("*/*.png", "*/*.npy", "gt_sets/*.txt"), 6),
    _archive("pascal", write_pascal, ("**/*.png", "**/*.mat", "**/*.jpg", "**/*.txt"), 4),
    *map(_described, WRITERS),
    Target("check", _write_archive, spoil_one("*/*.*"), _use_check, 2),
    Target("shards", _write_shards, _spoil_index_or_tar, _use_shards, 6),
]
