"""Building, checking and looking into WebDataset shards.

Everything slow (thinning, merging parts, masking normals) is done here, once. The same archive gives the same bytes for
any number of workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from fgmoe_dist.data import codec
from fgmoe_dist.data.layouts import Layout
from fgmoe_dist.data.plan import make_plan
from fgmoe_dist.data.shard_writer import claim, finish, index, is_finished, longest_id, record, tars, write_shard
from fgmoe_dist.data.shardset import BadSample, Shard, ShardSet, decode_sample, fetch_shard, parse_shard, read_shard
from fgmoe_dist.data.survey import Survey, Tally, doubts, survey_shard
from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_atomically, write_png
from fgmoe_dist.labels.storage import write_npy
from fgmoe_dist.outputs import DUMPED
from fgmoe_dist.outputs import claim as claim_folder
from fgmoe_dist.plugins import Plugged
from fgmoe_dist.progress import track

SAMPLES_PER_SHARD = 8  # small, so that every reader has several; 6 (PASCAL) to 20 (NYUD) MB


def build_shards(
    layout: Layout,
    split: str,
    out: str | Path,
    *,
    ids: Sequence[str] | None = None,
    workers: int = 1,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> ShardSet:
    """Write one split of an archive as shards with an `index.json`.

    A finished set of the same source is left as it is; an unfinished one is continued.

    Args:
        layout: the archive's reader.
        split: "train" or "val". Training samples are dealt to shards in a fixed shuffled order, because neighbours in
            the archives are frames of one video or photographs of one year; others keep the archive's order.
        out: folder of the shards, made if it is not there.
        ids: only these images (each must be in the split).
        workers: processes.
        samples_per_shard: samples in each tar but the last.

    Raises:
        UserError: a source file is missing or wrong, an id is not in the split, or `out` holds another set.
    """
    if samples_per_shard < 1 or workers < 1:
        raise UserError(f"samples per shard ({samples_per_shard}) and workers ({workers}) must be at least 1")
    out = Path(out)
    chosen = _choose(layout, split, ids)
    layout.check_labels(split, chosen)
    plan = make_plan(layout, split, chosen, samples_per_shard, workers)
    if is_finished(out, plan):
        return ShardSet.open(out)
    claim(out, plan)
    jobs = [(out / name, [*group]) for name, group in tars(plan).items()]
    shards = sorted(_write_all(layout, jobs, workers), key=lambda shard: shard[0]["name"])
    facts = _survey(layout, split, [survey for _, survey in shards], doubt=ids is None)
    keys = ("image", *codec.keys_of(layout.tasks, evaluation=True, labels=layout.labels))
    finish(out, index(layout, split, keys, [entry for entry, _ in shards], plan, facts))
    return ShardSet.open(out)


def verify_shards(where: str | Path) -> list[str]:
    """Read every byte of a set again and say what is wrong with it, one line a fault; empty if nothing is.

    Checked: each shard's presence, size, sha256, entries and ids; each sample's types, shapes and label values.
    """
    shardset = ShardSet.open(where)
    faults = [f"image {id_} is in the set {n} times: rebuild the set" for id_, n in _repeated_ids(shardset)]
    views = shardset.cache.views if shardset.cache else (shardset.shards,)
    for shard in track([shard for shards in views for shard in shards], "verifying shards"):
        faults += _shard_faults(shard)
    return faults


def dump_sample(where: str | Path, id_: str, out: str | Path) -> list[Path]:
    """Write one sample's native-resolution targets (docs/contracts.md) as `ID.<key>.npy`, its image as `ID.image.png`.

    Raises:
        UserError: no such id, or its shard is damaged.
    """
    shardset = ShardSet.open(where)
    if shardset.cache:
        raise UserError(f"{where} holds cached features of augmented views: dump the image shards they were made from")
    shard = shardset.find(id_)
    entries = read_shard(shard)[id_]
    sample = decode_sample(shard, id_, entries, tuple(entries))
    out = Path(out)
    claim_folder(out, "--out", DUMPED, mark=False)
    written = [write_png(out / f"{id_}.image.png", sample["image"])]
    for key, array in codec.native_sample(sample, shard.labels).items():
        if key not in ("id", "image"):
            written.append(write_atomically(out / f"{id_}.{key}.npy", write_npy(array)))
    return written


def _choose(layout: Layout, split: str, ids: Sequence[str] | None) -> list[str]:
    """The ids to build, in the order of the shards."""
    known = layout.ids(split)
    if ids is not None:
        strangers = sorted(set(ids) - set(known))
        if strangers:
            raise UserError(f"image {strangers[0]!r} is not in {layout.dataset} {split}: take it off the id list")
        wanted = set(ids)
        known = [id_ for id_ in known if id_ in wanted]
    most = longest_id(layout.labels)
    for id_ in known:
        if len(id_) > most:
            raise UserError(
                f"image id {id_} of {layout.dataset} {split} has {len(id_)} characters, of which a shard holds {most}: "
                "shorten the names of its files, and its id in the list"
            )
    if split != "train":
        return known
    return sorted(known, key=lambda id_: hashlib.sha256(id_.encode()).digest())


def _survey(layout: Layout, split: str, surveys: list[Survey], doubt: bool) -> dict:
    """What the index says of all labels; `UserError` if those of a whole split cannot be meant."""
    whole = Survey({task: Tally() for task in layout.tasks})
    for survey in surveys:
        whole.merge(survey)
    facts = whole.facts(layout.labels)
    for task, reason in doubts(layout, facts["survey"]).items() if doubt else ():
        raise UserError(f"{layout.root}: {task} of the {split} split: {reason}")
    return facts


def _write_all(layout: Layout, jobs: list[tuple[Path, list[str]]], workers: int) -> Iterator[tuple[dict, Survey]]:
    """Index records of all shards and what labels they have, in the order they are finished."""
    if workers == 1:
        for path, ids in track(jobs, "building shards"):
            yield _write_shard(layout, path, ids)
        return
    # spawn: a fork of a process that has threads (OpenCV, torch) may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_process, (Plugged(),)) as pool:
        futures: list[Future] = [pool.submit(_write_shard, layout, path, ids) for path, ids in jobs]
        try:
            for future in track(as_completed(futures), "building shards", len(futures)):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_process(_: Plugged) -> None:
    import cv2

    cv2.setNumThreads(1)


def _write_shard(layout: Layout, path: Path, ids: list[str]) -> tuple[dict, Survey]:
    """Write one tar unless it is there already; its record in the index, and what labels it has."""
    if not path.exists():
        write_shard(path, (entry for id_ in ids for entry in _entries(layout, id_)))
    entry = record(path, ids)
    shard = Shard(**{**entry, "ids": tuple(ids)}, url=str(path), labels=layout.labels)
    return entry, survey_shard(shard, layout.tasks)


def _entries(layout: Layout, id_: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a sample's entries."""
    for key, array in layout.stored(id_).items():
        extension, data = codec.encode(key, array, layout.labels)
        if key == "image" and layout.image_path(id_).suffix == ".jpg":
            original = layout.image_path(id_).read_bytes()
            if _reads_as(original, array):
                extension, data = "jpg", original
        yield f"{id_}.{key}.{extension}", data


def _reads_as(jpeg: bytes, image_HWC: np.ndarray) -> bool:
    """Whether a JPEG's own bytes may stand in the shard: the stream's decoder must see what the layout's saw."""
    try:
        return np.array_equal(codec.decode("image", "jpg", jpeg), image_HWC)
    except codec.CodecError:
        return False


def _repeated_ids(shardset: ShardSet) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for shard in shardset.shards:
        for id_ in shard.ids:
            counts[id_] = counts.get(id_, 0) + 1
    return [(id_, n) for id_, n in counts.items() if n > 1]


def _shard_faults(shard: Shard) -> list[str]:
    faults = []
    try:
        data = fetch_shard(shard)
        samples = parse_shard(shard, data)
    except BadSample as error:
        return [str(error)]
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        faults.append(f"shard {shard.url} has another sha256 than its index says: copy it again, or rebuild the set")
    for id_, entries in samples.items():
        try:
            sample = decode_sample(shard, id_, entries, tuple(entries))
        except BadSample as error:
            faults.append(str(error))
            continue
        faults += [
            f"sample {id_} of shard {shard.url}: {key} holds {value}, outside its range; rebuild that shard"
            for key, value in _strange_values(sample, shard)
        ]
    return faults


def _strange_values(sample: dict, shard: Shard) -> Iterator[tuple[str, float]]:
    """The first value out of its range of every key that has one."""
    for key, array in sample.items():
        if key != "id":
            bad = codec.entry(key, shard.labels).strange(array)
            if bad.size:
                yield key, bad.flat[0].item()


def summary(shardset: ShardSet) -> dict:
    """Figures of a set for people and for `--json`."""
    figures = {
        field.name: getattr(shardset, field.name)
        for field in dataclasses.fields(shardset)
        if field.name not in ("shards", "cache")
    }
    views = shardset.cache.views if shardset.cache else (shardset.shards,)
    shards = [shard for view in views for shard in view]
    return {
        **figures,
        "views": len(views) if shardset.cache else 0,
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
    }
