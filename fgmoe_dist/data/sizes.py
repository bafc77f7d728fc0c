"""How large the images of a set are, without decoding one: evaluation pads and never resizes, so all must fit."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image

from fgmoe_dist.data.shardset import BadSample, Shard, ShardSet, parse_entry, read_shard
from fgmoe_dist.errors import UserError

_NPY_HEAD = 1024  # of which the header of a plain array takes 128


def image_size(extension: str, data: bytes | memoryview) -> tuple[int, int]:
    """(height, width) of an image entry of a shard, from its head."""
    if extension != "npy":
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    head = io.BytesIO(data[:_NPY_HEAD])
    np.lib.format.read_magic(head)
    return np.lib.format.read_array_header_1_0(head)[0][:2]


def largest_size(shards: ShardSet) -> tuple[int, int]:
    """The largest height and the largest width among a set's images.

    A set that was built before its index said so is looked through, the heads of its images only; of one that does not
    lie in a folder here the first shard. What cannot be read is passed over: who needs it will say so.
    """
    if shards.largest is not None:
        return shards.largest
    largest_hw = (0, 0)
    for size_hw in _sizes(shards):
        largest_hw = tuple(map(max, largest_hw, size_hw))
    return largest_hw


def check_fits(shards: ShardSet, size_hw: tuple[int, int]) -> None:
    """Raise `UserError` if an image is larger than `data.image_size`."""
    if shards.cache:
        return
    largest_hw = largest_size(shards)
    if largest_hw[0] > size_hw[0] or largest_hw[1] > size_hw[1]:
        raise UserError(
            f"the {shards.dataset} {shards.split} shards have images of up to {'x'.join(map(str, largest_hw))}, larger "
            f"than data.image_size {'x'.join(map(str, size_hw))}: evaluation never resizes, so set data.image_size to "
            "hold them"
        )


def _sizes(shards: ShardSet) -> Iterator[tuple[int, int]]:
    are_here = not any(re.match(r"[a-z0-9]+:", shard.url) for shard in shards.shards)  # a URL, or `pipe:` and a command
    for shard in shards.shards if are_here else shards.shards[:1]:
        with suppress(BadSample, tarfile.TarError, OSError, ValueError, SyntaxError, KeyError):
            yield from (
                _sizes_here(shard)
                if are_here
                else (image_size(*entries["image"]) for entries in read_shard(shard).values())
            )


def _sizes_here(shard: Shard) -> Iterator[tuple[int, int]]:
    with tarfile.open(shard.url, "r:") as tar:
        for member in tar:
            _, key, extension = parse_entry(member, shard)
            if key == "image":
                file = tar.extractfile(member)
                yield image_size(extension, file.read(_NPY_HEAD if extension == "npy" else -1))
