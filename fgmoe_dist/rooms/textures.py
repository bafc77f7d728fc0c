"""Textures and colours, drawn without knowing what they are painted on.

A material is a scalar pattern and three colours it runs through. Patterns and colours come from one distribution for
every class, so that colour alone says nothing about the class; even skin and hair come from the family of warm
browns that wood and cloth use too.

Shapes: P patterns, S the side of a pattern in texels, M materials, N points. Colours are linear RGB in 0..1.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb as _rgb
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SIDE = 256
_LEVELS = 8  # of the image pyramid: 256 down to 2
_TEXELS = sum((SIDE >> level) ** 2 for level in range(_LEVELS))
_OFFSETS = np.cumsum([0] + [(SIDE >> level) ** 2 for level in range(_LEVELS - 1)])


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Display hue, saturation and value to linear light."""
    return np.array([s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in _rgb(hue, saturation, value)])


class Palette:
    """The colours of one scene: neutrals, warm browns, and accents of a few hues."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.hues = rng.uniform(-0.04, 0.68, 2)

    def warm(self) -> np.ndarray:
        """A wood, leather or skin brown, from nearly black to pale."""
        hue, saturation, value = self.rng.random(3)
        return _hsv(0.035 + 0.075 * hue, 0.2 + 0.4 * saturation, 0.2 + 0.72 * value)

    def colour(self) -> np.ndarray:
        """Any colour of the scene."""
        family, hue, saturation, value = self.rng.random(4)
        if family < 0.33:
            return self.warm()
        if family < 0.86:
            return _hsv(hue, 0.13 * saturation, 0.3 + 0.66 * value)
        return _hsv(
            (self.hues[int(hue * 2)] + 0.04 * (hue * 2 % 1) - 0.02) % 1, 0.15 + 0.38 * saturation, 0.3 + 0.55 * value
        )

    def companion(self, colour: np.ndarray, contrast: float) -> np.ndarray:
        """A colour that goes with another: lighter or darker, a little of a third one in it."""
        side, much = self.rng.random(2)
        gain = np.exp((-contrast if side < 0.5 else contrast) * (0.5 + much))
        mixed = colour * (gain * (1 - contrast * 0.3)) + self.colour() * (contrast * 0.3)
        return np.minimum(np.maximum(mixed, 0.005), 0.9)


# ---------------------------------------------------------------------------------------------------------- patterns
# Each maps (rng, noise) to a tileable [S, S] field of 0..1; `noise` is a shared cloud field of mean 0, deviation 1.

_Y, _X = np.mgrid[:SIDE, :SIDE] / SIDE


def _clouds(rng: np.random.Generator, slope: float = 1.4) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) * SIDE
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32)) / np.maximum(frequency, 1) ** slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    return field / field.std()


def _plain(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    return 0.5 + 0.07 * noise


def _grain(rng: np.random.Generator, noise: np.ndarray, rings: int | None = None) -> np.ndarray:
    rings = rng.integers(3, 9) if rings is None else rings
    return 0.5 + 0.35 * np.sin(2 * np.pi * (rings * _Y + 0.35 * noise[(np.arange(SIDE) * 4) % SIDE][:, _STRETCH]))


_STRETCH = (np.abs(np.arange(SIDE) - SIDE // 2)) // 4  # reads a field slowly along x, and back: it still tiles


def _planks(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    rows, ends = 6, rng.uniform(0, 1, 6)
    row = np.minimum((_Y * rows).astype(int), rows - 1)
    board = (_X + ends[row]) % 1
    tone = rng.uniform(0.25, 0.85, (rows, 2))[row, (board * 2).astype(int)]
    gap = ((_Y * rows) % 1 < 0.05) | ((board * 2) % 1 < 0.008)
    return np.where(gap, 0.0, tone + 0.25 * (_grain(rng, noise, rings=2 * rows) - 0.5))


def _tiles(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    count, joint = rng.integers(2, 6), rng.uniform(0.02, 0.06)
    gap = ((_X * count) % 1 < joint) | ((_Y * count) % 1 < joint)
    tone = rng.uniform(0.6, 0.9, (count, count))[(_Y * count).astype(int), (_X * count).astype(int)]
    return np.where(gap, 0.05, tone + 0.06 * noise)


def _bricks(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    rows = 8
    row = (_Y * rows).astype(int)
    along = (_X * 4 + 0.5 * (row % 2)) % 4
    gap = ((_Y * rows) % 1 < 0.1) | (along % 1 < 0.05)
    return np.where(gap, 0.95, rng.uniform(0.1, 0.6, (rows, 4))[row, along.astype(int)] + 0.08 * noise)


def _stripes(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    wave = np.sin(2 * np.pi * rng.integers(2, 9) * _X + rng.uniform(0, 6))
    return 0.5 + 0.45 * np.tanh(wave * rng.uniform(1, 8)) + 0.04 * noise


def _checks(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    count, share = rng.integers(2, 6), rng.uniform(0.3, 0.6)
    return 0.2 + 0.35 * ((_X * count) % 1 < share) + 0.35 * ((_Y * count) % 1 < share) + 0.03 * noise


def _dots(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    count, radius = rng.integers(3, 8), rng.uniform(0.15, 0.38)
    x, y = (_X * count + 0.5 * ((_Y * count).astype(int) % 2)) % 1, (_Y * count) % 1
    return np.clip(0.5 + (radius - np.hypot(x - 0.5, y - 0.5)) * 12, 0.05, 0.95) + 0.03 * noise


def _marble(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    return np.exp(-np.abs(noise) * rng.uniform(2, 5)) * 0.8 + 0.1


def _weave(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    count = rng.integers(24, 48)
    return 0.5 + 0.2 * np.sin(2 * np.pi * count * _X) * np.sin(2 * np.pi * count * _Y) + 0.1 * noise


def _blobs(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    return np.tanh(noise * rng.uniform(1, 4)) * 0.45 + 0.5


def _diamonds(rng: np.random.Generator, noise: np.ndarray) -> np.ndarray:
    count = rng.integers(2, 6)
    distance = np.abs((_X * count) % 1 - 0.5) + np.abs((_Y * count) % 1 - 0.5)
    return 0.5 + 0.4 * np.sin(2 * np.pi * distance * rng.integers(1, 4)) + 0.03 * noise


PATTERNS = (_plain, _grain, _planks, _tiles, _bricks, _stripes, _checks, _dots, _marble, _weave, _blobs, _diamonds)
_QUIET = (_plain, _grain, _weave, _marble)


def _pyramid(field_SS: np.ndarray) -> np.ndarray:
    levels = [np.clip(field_SS, 0, 1).astype(np.float32)]
    for _ in range(_LEVELS - 1):
        last = levels[-1]
        levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) * np.float32(0.25))
    return np.concatenate([level.ravel() for level in levels])


@dataclass
class Paint:
    """All materials of a scene, as parallel arrays; `Painter.finish` makes it."""

    texel_PX: np.ndarray  # the pyramids, flattened
    pattern_M: np.ndarray
    repeat_M2: np.ndarray  # patterns per metre
    colour_M33: np.ndarray
    emission_M: np.ndarray  # 0 = reflects only, else glows with that many times its colour
    gloss_M: np.ndarray  # reflectance at normal incidence; 1 = mirror

    def albedo(self, material_N: np.ndarray, uv_N2: np.ndarray, footprint_N: np.ndarray) -> np.ndarray:
        """Colours at texture coordinates in metres, averaged over about `footprint` metres. `[N, 3]` float32."""
        share = self._pattern(material_N, uv_N2, footprint_N)[:, None]
        low, middle, high = (self.colour_M33[material_N, i] for i in range(3))
        return np.where(share < 0.5, low + (middle - low) * (2 * share), middle + (high - middle) * (2 * share - 1))

    def mean_albedo(self) -> np.ndarray:
        """`[M, 3]`"""
        middle = self.texel_PX[:, -4:].mean(1)[self.pattern_M][:, None]
        return self.colour_M33[:, 0] * (1 - middle) + self.colour_M33[:, 2] * middle

    def _pattern(self, material_N: np.ndarray, uv_N2: np.ndarray, footprint_N: np.ndarray) -> np.ndarray:
        repeat = self.repeat_M2[material_N]
        level = np.log2(np.maximum(footprint_N * repeat.max(1) * SIDE, 1))
        level = np.minimum((level + 0.5).astype(np.int32), _LEVELS - 1)
        side = SIDE >> level
        place = uv_N2 * repeat * side[:, None] - np.float32(0.5)
        floor = np.floor(place)
        part_x, part_y = (place - floor).T
        mask = side - 1
        x0, y0 = (floor.astype(np.int32) & mask[:, None]).T
        x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
        start = self.pattern_M[material_N] * _TEXELS + _OFFSETS[level]
        texel = self.texel_PX.ravel()
        row0, row1 = start + y0 * side, start + y1 * side
        top = texel[row0 + x0] * (1 - part_x) + texel[row0 + x1] * part_x
        low = texel[row1 + x0] * (1 - part_x) + texel[row1 + x1] * part_x
        return top * (1 - part_y) + low * part_y


class Painter:
    """Draws materials for a scene, one call per material, then hands all of them over as a `Paint`."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.palette = rng, Palette(rng)
        noise = _clouds(rng)
        chosen = [PATTERNS[i] for i in rng.permutation(len(PATTERNS))[:6]]
        # Three quiet ones always, so that a room is not all stripes and dots.
        self.kinds = [*chosen, *rng.permutation(np.array(_QUIET, object))[:3]]
        shifts = rng.integers(0, SIDE, (len(self.kinds) + 1, 2))
        self.texels = [
            _pyramid(kind(rng, np.roll(noise, shift, (0, 1)))) for kind, shift in zip(self.kinds, shifts, strict=False)
        ]
        self.texels.append(_pyramid(_Y * np.ones_like(_X)))  # the sky seen through a window
        self.texels.append(_pyramid(0.5 + 0.25 * _clouds(rng, 1.9)))  # paintings and screens
        self.rows = []

    def _row(
        self, pattern: int, repeat: np.ndarray, colours: np.ndarray, emission: float = 0.0, gloss: float = 0.0
    ) -> int:
        self.rows.append((pattern, repeat, colours, emission, gloss))
        return len(self.rows) - 1

    def any(self, emission: float = 0.0, may_shine: bool = True) -> int:
        """A material of the common distribution; soft and curved things should not shine."""
        rng = self.rng
        loud = rng.random() < 0.45
        pattern = rng.integers(0, len(self.kinds)) if loud else rng.integers(6, len(self.kinds))
        colour = self.palette.colour()
        contrast = rng.uniform(0.1, 0.9) if loud else rng.uniform(0.02, 0.35)
        ends = self.palette.companion(colour, contrast), self.palette.companion(colour, contrast)
        repeat = 0.5 * 5 ** rng.random() * np.ones(2)
        gloss = (0.0, 0.0, 0.03, 0.06)[rng.integers(4)] * may_shine
        return self._row(pattern, repeat, np.stack([ends[0], (ends[0] + ends[1]) / 2, ends[1]]), emission, gloss)

    def warm(self) -> int:
        """Skin or hair: a plain brown, of the same family as wood."""
        colour = self.palette.warm()
        return self._row(len(self.kinds) - 1, np.ones(2), np.stack([colour * 0.93, colour, colour * 1.05]))

    def picture(self, size: ArrayLike, emission: float = 0.0) -> int:
        """A painting or a screen's picture, once across `size` (width, height) metres."""
        colours = np.stack([self.palette.colour() for _ in range(3)])
        return self._row(len(self.texels) - 1, 1 / np.maximum(size, 0.05), colours, emission, 0.03)

    def sky(self, height: float, brightness: float) -> int:
        """What a window shows: ground, haze and sky, from day to night, `height` metres of it."""
        rng = self.rng
        ground, haze = self.palette.colour() * 0.5, np.array([0.8, 0.85, 0.9])
        sky = haze * rng.uniform((0.3, 0.5, 0.8), (0.9, 0.95, 1.0))
        return self._row(len(self.texels) - 2, np.array([0.01, 1 / height]), np.stack([ground, haze, sky]), brightness)

    def mirror(self) -> int:
        return self._row(len(self.kinds) - 1, np.ones(2), np.full((3, 3), 0.02), 0.0, 0.9)

    def finish(self) -> Paint:
        pattern, repeat, colours, emission, gloss = zip(*self.rows, strict=True)
        return Paint(
            np.stack(self.texels),
            np.array(pattern),
            np.array(repeat, np.float32),
            np.array(colours, np.float32),
            np.array(emission, np.float32),
            np.array(gloss, np.float32),
        )
