"""Random streams: what makes a scene depend on (seed, split, index) and on nothing else.

Every shape, texture and camera of a scene is drawn from streams keyed by the split, so a training and a
validation scene share neither a seed nor a piece of furniture, and a scene is the same whichever process
renders it and however many scenes its data set has.
"""

from __future__ import annotations

import zlib

import numpy as np

SPLITS = ("train", "val")


def stream(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """A generator for one purpose ("room", "look", "camera", ...) of one scene.

    Purposes have streams of their own so that a new kind of texture does not move the furniture.
    """
    assert split in SPLITS, split
    return np.random.default_rng([seed, SPLITS.index(split), index, zlib.crc32(purpose.encode())])
