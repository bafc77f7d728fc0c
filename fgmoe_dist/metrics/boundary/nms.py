"""Non-maximum suppression of a boundary probability map along the local edge normal.

Written from the published description of the SEISM / structured-edges evaluation: orientation from the Hessian of the
triangle-filtered map, a pixel dies when its value times 1.01 lies below the bilinear sample one pixel away on either
side of it along the orientation, and the outermost five pixels (fewer in a tiny image) fade to zero. float32 as there:
at a tie with a threshold the last bit decides.

Shapes: H x W pixels; x runs along columns, y along rows.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_TRIANGLE = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], np.float64) / 25
_MULTIPLIER = np.float32(1.01)
_RAMP = 5


def suppress_non_maxima(probability_HW: np.ndarray) -> np.ndarray:
    """Ridges of a boundary map.

    Args:
        probability_HW: uint8 `[H, W]`, 255 times the probability.

    Returns:
        float32 `[H, W]` in 0..1: the value where the pixel is a maximum across the boundary, else 0.
    """
    assert probability_HW.dtype == np.uint8 and probability_HW.ndim == 2
    value_HW = probability_HW.astype(np.float32) / np.float32(255)
    across_x_HW, across_y_HW = _across(value_HW)
    height, width = value_HW.shape
    y_HW, x_HW = np.mgrid[:height, :width].astype(np.float32)
    strongest_HW = np.maximum(
        _sample(value_HW, y_HW + across_y_HW, x_HW + across_x_HW),
        _sample(value_HW, y_HW - across_y_HW, x_HW - across_x_HW),
    )
    kept_HW = np.where(value_HW * _MULTIPLIER < strongest_HW, np.float32(0), value_HW)
    ramp = min(_RAMP, height // 2, width // 2)
    return kept_HW * _ramp(height, ramp)[:, None] * _ramp(width, ramp)[None, :]


def _across(value_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (x, y) along atan(Oyy * sign(-Oxy) / (Oxx + 1e-5)): the direction that crosses the boundary.

    Where Oxy is exactly 0 the formula gives the x axis, even on a horizontal line: such a line keeps its flanks, as in
    the original. The vector up to its sign is all that is needed, so neither the angle nor its cosine is computed.
    """
    smooth_HW = ndimage.correlate1d(value_HW, _TRIANGLE, axis=0, mode="reflect")
    smooth_HW = ndimage.correlate1d(smooth_HW, _TRIANGLE, axis=1, mode="reflect")
    x_HW, y_HW = _slope(smooth_HW, 1), _slope(smooth_HW, 0)
    xx_HW, xy_HW, yy_HW = _slope(x_HW, 1), _slope(y_HW, 1), _slope(y_HW, 0)
    run_HW = xx_HW + np.float32(1e-5)
    rise_HW = yy_HW * np.sign(-xy_HW)
    length_HW = np.hypot(run_HW, rise_HW)
    length_HW[length_HW == 0] = 1
    return run_HW / length_HW, rise_HW / length_HW


def _slope(value_HW: np.ndarray, axis: int) -> np.ndarray:
    """Central differences, one-sided at the ends; 0 along an axis of one pixel."""
    return np.gradient(value_HW, axis=axis) if value_HW.shape[axis] > 1 else np.zeros_like(value_HW)


def _sample(value_HW: np.ndarray, y_HW: np.ndarray, x_HW: np.ndarray) -> np.ndarray:
    """Bilinear samples, coordinates clamped to the image."""
    return ndimage.map_coordinates(value_HW, [y_HW, x_HW], order=1, mode="nearest")


def _ramp(length: int, ramp: int) -> np.ndarray:
    """Factors i / ramp for the i-th pixel from either end, 1 further in."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1])
    return np.minimum(from_end, ramp).astype(np.float32) / np.float32(max(ramp, 1))
