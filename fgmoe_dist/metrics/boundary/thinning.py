"""Thinning of binary maps to convergence, as MATLAB's `bwmorph(map, 'thin', Inf)`, 64 maps at once.

Guo and Hall, Parallel thinning with two-subiteration algorithms, CACM 1989, in the variant of Lam, Lee and Suen,
Thinning methodologies, PAMI 1992, p. 879. `skimage.morphology.thin` is the same algorithm, one whole map at a time.
Here bit k of a word is a pixel of map k, so that the cuts of one ridge map at all its thresholds are thinned together,
and a pixel is looked at again only after one of its eight neighbours went.

Shapes: H x W pixels, P pixels under examination.
"""

from __future__ import annotations

import numpy as np

# The eight neighbours x1..x8 as (dy, dx), counter-clockwise from the east.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin_words(word_HW: np.ndarray) -> np.ndarray:
    """64 thinned maps: lines one pixel wide, of the same connectivity.

    Args:
        word_HW: uint64 `[H, W]`, bit k is map k; outside of it counts as 0.

    Returns:
        uint64 `[H, W]`, each bit a subset of the same bit of `word_HW`.
    """
    assert word_HW.ndim == 2 and word_HW.dtype == np.uint64, f"{word_HW.dtype} {word_HW.shape}"
    padded = np.pad(word_HW, 1)
    flat = padded.ravel()
    offsets = np.array([dy * padded.shape[1] + dx for dy, dx in _NEIGHBOURS])

    slot = np.empty(len(flat), np.int32)
    everything = np.flatnonzero(flat)
    pending = [everything, everything]  # pixels to look at in each half pass
    half = 0
    while len(pending[0]) or len(pending[1]):
        pixels = pending[half][flat[pending[half]] != 0]
        order = np.arange(len(pixels), dtype=np.int32)
        slot[pixels] = order  # a pixel listed twice keeps its last place only; cheaper than sorting
        pixels = pixels[slot[pixels] == order]
        gone_P = flat[pixels] & _deletable([flat[pixels + offset] for offset in offsets], half)
        changed = gone_P != 0
        pixels = pixels[changed]
        flat[pixels] ^= gone_P[changed]
        touched = (pixels[:, None] + offsets).ravel()
        pending[half] = touched
        pending[1 - half] = np.concatenate([pending[1 - half], touched])
        half = 1 - half
    return padded[1:-1, 1:-1]


def _deletable(neighbours_8P: list[np.ndarray], half: int) -> np.ndarray:
    """Words `[P]`: may the pixel go, given its neighbours' words x1..x8, in the first (0) or second half pass?"""
    x = [None, *neighbours_8P, neighbours_8P[0]]
    # Exactly one crossing from 0 to 1 around the pixel: an odd number of four, and no pair of both halves.
    c = [~x[i] & (x[i + 1] | x[i + 2]) for i in (1, 3, 5, 7)]
    one_crossing = (c[0] ^ c[1] ^ c[2] ^ c[3]) & ~((c[0] & c[1]) | (c[2] & c[3]))
    # The fewer of two ways to count neighbours in pairs is 2 or 3.
    a, b = ([x[i] | x[i + 1] for i in first] for first in ((1, 3, 5, 7), (2, 4, 6, 8)))
    two_or_three = _at_least_two(a) & _at_least_two(b) & ~(a[0] & a[1] & a[2] & a[3] & b[0] & b[1] & b[2] & b[3])
    side = ~((x[6] | x[7] | ~x[4]) & x[5]) if half else ~((x[2] | x[3] | ~x[8]) & x[1])
    return one_crossing & two_or_three & side


def _at_least_two(four: list[np.ndarray]) -> np.ndarray:
    return (four[0] & four[1]) | (four[2] & four[3]) | ((four[0] | four[1]) & (four[2] | four[3]))
