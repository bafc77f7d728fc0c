"""What makes one set of shards another: its images, and the contents of the files that they are made of.

Sizes would not do: a value that is corrected in place leaves them as they are. The plan of an unfinished build also
tells which of its tars are still good.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from fgmoe_dist.data.layouts import Layout
from fgmoe_dist.errors import UserError
from fgmoe_dist.progress import track

_DIGITS = 16  # of a hash, enough against chance


def make_plan(layout: Layout, split: str, ids: list[str], samples_per_shard: int, workers: int = 1) -> dict:
    """The plan of a set, as `plan.json` and the index's `source` keep it; reads every source file once.

    Raises:
        UserError: a file is missing.
    """
    with ThreadPoolExecutor(workers) as pool:  # reading and hashing leave Python's lock alone
        meaning = layout.meaning().encode()
        found = pool.map(lambda id_: _content(layout, id_, meaning), ids)
        contents = dict(track(zip(ids, found), "reading the files", len(ids)))
    return {
        "dataset": layout.dataset,
        "split": split,
        "root": str(layout.root.resolve()),
        "samples": len(ids),
        "samples_per_shard": samples_per_shard,
        "fingerprint": _fingerprint(layout, ids),
        "contents": contents,
    }


def _content(layout: Layout, id_: str, meaning: bytes) -> str:
    """A hash of what decides a sample: the description, and the names and bytes of its files."""
    digest = hashlib.sha256(meaning)
    for path in layout.sources(id_):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path} is missing: unpack the archive again, or take its id off the list") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); replace that file") from None
        name = path.relative_to(layout.root) if path.is_relative_to(layout.root) else path.name
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:_DIGITS]


def _fingerprint(layout: Layout, ids: list[str]) -> str:
    """What told sets apart before contents did: the description, the ids and the sizes of files."""
    digest = hashlib.sha256(layout.meaning().encode())
    for id_ in ids:
        for path in layout.files(id_):
            digest.update(f"{id_} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
