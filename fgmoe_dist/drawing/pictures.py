"""Predictions and labels as RGB pictures: arrays in, uint8 `[H, W, 3]` out, pixel for pixel.

A class has one colour wherever it appears; depth and probability maps are perceptually even; what has no
label is hatched in grey, so that it is never taken for a class or a value.
Shapes: H x W pixels, C = 3 channels, N classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import cv2
import numpy as np

from fgmoe_dist.drawing.style import hatch

IGNORE = 255  # of a label map, where its task says no other
LEAST_RANGE = 1e-6  # of a scale, so that a constant map has one
BACKGROUND_RGB = (46, 48, 56)
_FIRST_RGB = (86, 133, 178)


def picture_classes(
    ids_HW: np.ndarray, class_names: Sequence[str], ignore: int = IGNORE, colours_NC: np.ndarray | None = None
) -> np.ndarray:
    """Class ids in their own colours or those of `class_colours`; `ignore`, the highest value there is, is hatched."""
    table_NC = np.zeros((ignore + 1, 3), np.uint8)
    colours_NC = class_colours(class_names) if colours_NC is None else colours_NC
    table_NC[: len(colours_NC)] = colours_NC
    return _hatch(table_NC[ids_HW], ids_HW == ignore)


def picture_values(values_HW: np.ndarray, valid_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values in the colours of `depth_scale`, `low` bright and `high` dark; what is not valid is hatched."""
    share_HW = np.where(valid_HW, (values_HW - low) / max(high - low, LEAST_RANGE), 0)
    index_HW = np.rint(255 * np.clip(share_HW, 0, 1)).astype(np.uint8)
    return _hatch(depth_scale()[index_HW], ~valid_HW)


def value_range(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """Ends of a scale for these values together: 1st and 99th percentile, so that a stray pixel does not flatten it."""
    ends = [np.percentile(some, (1, 99)) for some in values if some.size]
    if not ends:
        return 0.0, 1.0
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def depth_scale() -> np.ndarray:
    """The 256 colours from near to far, uint8 `[256, 3]`: matplotlib's `inferno` without its blacks."""
    ramp = np.rint(np.linspace(255, 20, 256)).astype(np.uint8)[:, None]
    return cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[:, 0, ::-1]


def picture_normals(normals_HWC: np.ndarray) -> np.ndarray:
    """Unit normals as the field draws them, (n + 1) / 2 in RGB; NaN is hatched."""
    invalid_HW = np.isnan(normals_HWC).any(axis=2)
    unit_HWC = np.where(invalid_HW[..., None], 0, normals_HWC)
    return _hatch(np.rint(127.5 * np.clip(unit_HWC + 1, 0, 2)).astype(np.uint8), invalid_HW)


def picture_vectors(vectors_HWC: np.ndarray, low: float, high: float) -> np.ndarray:
    """The first three channels as red, green and blue from `low` to `high`, missing ones dark; NaN is hatched."""
    invalid_HW = np.isnan(vectors_HWC).any(axis=2)
    shown_HWC = np.where(invalid_HW[..., None], low, vectors_HWC)[..., :3]
    share_HWC = np.clip((shown_HWC - low) / (high - low), 0, 1)
    missing = [(0, 0), (0, 0), (0, 3 - share_HWC.shape[2])]
    return _hatch(np.pad(np.rint(255 * share_HWC).astype(np.uint8), missing), invalid_HW)


def picture_saliency(probability_HW: np.ndarray, ignored_HW: np.ndarray | None = None) -> np.ndarray:
    """A uint8 probability map, white for salient."""
    return _hatch(np.repeat(probability_HW[..., None], 3, axis=2), ignored_HW)


def picture_edge(probability_HW: np.ndarray, ignored_HW: np.ndarray | None = None) -> np.ndarray:
    """A uint8 probability map as ink on paper, black for a boundary."""
    return picture_saliency(255 - probability_HW, ignored_HW)


def class_colours(class_names: Sequence[str]) -> np.ndarray:
    """One colour per class, uint8 `[N, 3]`; `background` is dark and draws no eye."""
    others = iter(palette(len(class_names)))
    rows = [BACKGROUND_RGB if name == "background" else next(others) for name in class_names]
    return np.array(rows, np.uint8).reshape(-1, 3)


@lru_cache
def palette(count: int) -> np.ndarray:
    """`count` colours, uint8 `[N, 3]`, each as far as can be from all before it (Glasbey et al. 2007).

    Distances are taken in CIELAB, among colours neither pale, dark nor glaring. A longer palette starts
    with the shorter one.
    """
    steps = np.arange(0, 256, 15, dtype=np.float32)
    rgb_NC = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_NC = _lab(rgb_NC)
    chroma_N = np.hypot(lab_NC[:, 1], lab_NC[:, 2])
    keep_N = (lab_NC[:, 0] > 38) & (lab_NC[:, 0] < 88) & (chroma_N > 18) & (chroma_N < 64)
    rgb_NC, lab_NC = rgb_NC[keep_N], lab_NC[keep_N]
    chosen = [np.array(_FIRST_RGB, np.float32)]
    far_N = np.linalg.norm(lab_NC - _lab(chosen[0][None]), axis=1)
    for taken in (BACKGROUND_RGB, (200, 200, 200)):  # the dark background and the hatch are colours too
        far_N = np.minimum(far_N, np.linalg.norm(lab_NC - _lab(np.array([taken], np.float32)), axis=1))
    while len(chosen) < count:
        best = int(far_N.argmax())
        chosen.append(rgb_NC[best])
        far_N = np.minimum(far_N, np.linalg.norm(lab_NC - lab_NC[best], axis=1))
    return np.array(chosen[:count]).reshape(-1, 3).astype(np.uint8)


def _lab(rgb_NC: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb_NC[None].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]


def _hatch(rgb_HWC: np.ndarray, mask_HW: np.ndarray | None) -> np.ndarray:
    """`rgb` with grey stripes where `mask`."""
    if mask_HW is None or not mask_HW.any():
        return rgb_HWC
    return np.where(mask_HW[..., None], hatch(*mask_HW.shape), rgb_HWC)
