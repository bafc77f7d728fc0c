"""The one look of all that is drawn: inks, type, the hatch that means "nothing here", round numbers for scales."""

from __future__ import annotations

import math

import numpy as np
from PIL import ImageFont

INK, FAINT, PAPER, LINE = (28, 30, 36), (110, 114, 124), (255, 255, 255), (205, 208, 214)
HATCH = ((196, 196, 196), (226, 226, 226))  # stripes, and what lies between them


def font(size: int) -> ImageFont.FreeTypeFont:
    """The face Pillow carries, so that a picture looks the same on every machine."""
    return ImageFont.load_default(size)


def hatch(height: int, width: int, period: int = 10, stripe: int = 4, start: int = 0) -> np.ndarray:
    """Grey diagonal stripes, uint8 `[height, width, 3]`: along a row `stripe` of every `period` pixels."""
    row_H1, column_1W = np.ogrid[:height, :width]
    striped_HW = (row_H1 + column_1W + start) % period < stripe
    return np.where(striped_HW[..., None], *np.array(HATCH, np.uint8))


def round_values(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers from `low` to `high`, evenly spaced: the grid of a chart."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    return _multiples(step, low, high)


def few_round_values(low: float, high: float, finest: float = 0.0) -> list[float]:
    """The round numbers between `low` and `high` at the widest spacing that has three: the ticks of a colour scale.

    Where that is narrower than `finest`, or there is no range at all, `low` alone, to a tenth of `finest`.
    """
    power = math.ceil(math.log10(high - low)) if high > low else -math.inf
    while math.isfinite(power) and 10.0**power >= finest * (1 - 1e-9):
        for step in (10.0**power, 0.5 * 10.0**power, 0.2 * 10.0**power):
            values = _multiples(step, low, high)
            if len(values) >= 3 and step >= finest * (1 - 1e-9):
                return values
        power -= 1
    return [round(low / finest * 10) * finest / 10 if finest else low]


def _multiples(step: float, low: float, high: float) -> list[float]:
    first = np.ceil(low / step - 1e-9)
    return [float(f"{(first + k) * step:.6g}") for k in range(int(np.floor(high / step + 1e-9) - first) + 1)]
