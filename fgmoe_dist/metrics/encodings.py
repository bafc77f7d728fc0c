"""Signs that a whole set of saved predictions is in another encoding than the meters ask for.

A single file seldom tells: a black map may be a bad model's, a vector without a negative part may point at the camera.
Over a set, against the labels, it shows. A watch is a vector of sums as a meter is, and is merged as one; `reason` is
the likely mistake in words, or None. Each says when it is sure; a bad model is none of these.

Shapes: H, W native size; P valid pixels; C classes.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod

import numpy as np

from fgmoe_dist.metrics.meter import Sums


class Watch(Sums):
    @abstractmethod
    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Look at one image's prediction, which the meter has taken, and its native label."""

    @abstractmethod
    def reason(self) -> str | None:
        """What is most likely wrong with all of them; None where nothing is."""


class ByteWatch(Watch):
    """Probabilities that should go from 0 to 255, but are 0 and 1 in the whole set."""

    def __init__(self) -> None:
        super().__init__(256)  # pixels of each value

    def update(self, prediction_HW: np.ndarray, label_HW: np.ndarray) -> None:
        self._sums += np.bincount(prediction_HW.ravel(), minlength=256)

    def reason(self) -> str | None:
        if self._sums[1] and not self._sums[2:].any():
            return "hold no other values than 0 and 1: save uint8(255 * probability)"
        return None


class ClassWatch(Watch):
    """Class ids that are one higher, or one lower, than the labels'."""

    SURE, FEWEST = 0.5, 3  # the share of a class that is found under its neighbour, and of how many classes

    def __init__(self, classes: int, ignore: int):
        self.classes, self.ignore = classes, ignore
        super().__init__(4 * classes)  # of each true class: pixels, found as it is, as the next, as the one before

    def update(self, prediction_HW: np.ndarray, label_HW: np.ndarray) -> None:
        valid = label_HW != self.ignore
        truth_P, found_P = label_HW[valid].astype(np.int64), prediction_HW[valid].astype(np.int64)
        near = (truth_P, truth_P[found_P == truth_P], truth_P[found_P == truth_P + 1], truth_P[found_P == truth_P - 1])
        self._sums += np.concatenate([np.bincount(t, minlength=self.classes) for t in near])

    def reason(self) -> str | None:
        pixels_C, hit_C, above_C, below_C = self._sums.reshape(4, self.classes)
        for shifted_C, word, cure in ((above_C, "above", "subtract 1"), (below_C, "below", "add 1")):
            sure = (shifted_C > self.SURE * pixels_C).sum() >= min(self.FEWEST, max(self.classes - 1, 2))
            if sure and shifted_C.sum() > self.SURE * pixels_C.sum() and shifted_C.sum() > 3 * hit_C.sum():
                return f"are one {word} the labels' class ids, which count from 0: {cure}"
        return None


class DirectionWatch(Watch):
    """Vectors left in 0 .. 1, or with their axes in another order or turned around.

    With M the sum of p g^T over valid pixels, the sum of the cosines that any order and signs S of the axes would have
    given is trace(S M): all 48 are tried at once.
    """

    CLEARLY, GOOD, VARIED = 0.25, 0.75, 0.05  # gain in mean cosine, and what it comes to; least spread of the truth

    def __init__(self) -> None:
        super().__init__(9 + 9 + 3)  # M; the sum of g g^T; pixels, those with a negative part, those of length one

    def update(self, prediction_HWC: np.ndarray, label_HWC: np.ndarray) -> None:
        valid = ~np.isnan(label_HWC).any(axis=-1)
        p_P3, g_P3 = prediction_HWC[valid].astype(np.float64), label_HWC[valid].astype(np.float64)
        length_P = np.linalg.norm(p_P3, axis=-1)
        unit_P3 = p_P3 / np.maximum(length_P, 1e-12)[:, None]
        counts = [len(p_P3), (p_P3 < -1e-3).any(-1).sum(), (np.abs(length_P - 1) < 0.02).sum()]
        self._sums += np.concatenate([(unit_P3.T @ g_P3).ravel(), (g_P3.T @ g_P3).ravel(), counts])

    def reason(self) -> str | None:
        pixels, negative, unit = self._sums[18:]
        if not pixels:
            return None
        if not negative and unit < pixels / 2:
            return "have no negative part and are not of length one: left in 0 .. 1? Save 2x - 1"
        m_33, spread_33 = self._sums[:9].reshape(3, 3) / pixels, self._sums[9:18].reshape(3, 3) / pixels
        if np.sort(np.linalg.eigvalsh(spread_33))[1] < self.VARIED:
            return None  # all look one way, so that nothing tells the axes apart
        gain, how = max((self._cosine(m_33, how), how) for how in _AXES)
        if gain > self.GOOD and gain > self._cosine(m_33, _AXES[0]) + self.CLEARLY:
            return f"fit the labels only if their channels are {_in_words(how)}: save x, y, z as the labels have them"
        return None

    @staticmethod
    def _cosine(m_33: np.ndarray, how: tuple[tuple[int, int], ...]) -> float:
        return float(sum(sign * m_33[channel, axis] for axis, (channel, sign) in enumerate(how)))


class RangeWatch(Watch):
    """Values far beyond the range that the data set gives its labels, as 0 .. 255 is where colours go from 0 to 1."""

    def __init__(self, low: float, high: float):
        super().__init__(2)  # values, and those beyond the range by as much as it is wide
        self.low, self.high = low, high

    def update(self, prediction_HWC: np.ndarray, label_HWC: np.ndarray) -> None:
        span = self.high - self.low
        beyond = (prediction_HWC < self.low - span) | (prediction_HWC > self.high + span)
        self._sums += [prediction_HWC.size, np.count_nonzero(beyond)]

    def reason(self) -> str | None:
        values, beyond = self._sums
        if 2 * beyond > values:
            return f"lie far outside the labels' range [{self.low:g}, {self.high:g}]: save values on that scale"
        return None


class RatioWatch(Watch):
    """Positive values in another unit: nearly the same power of ten times the labels everywhere."""

    CLOSE, ALIKE = 0.15, 0.35  # of the mean and of the spread of ln(p / g)

    def __init__(self) -> None:
        super().__init__(3)  # pixels, sums of ln(p / g) and of its square

    def update(self, prediction_HW: np.ndarray, label_HW: np.ndarray) -> None:
        valid = (label_HW > 0) & (prediction_HW > 0)
        log_P = np.log(prediction_HW[valid].astype(np.float64) / label_HW[valid].astype(np.float64))
        self._sums += [len(log_P), log_P.sum(), (log_P**2).sum()]

    def reason(self) -> str | None:
        pixels, total, square = self._sums
        if not pixels:
            return None
        mean = total / pixels
        power = round(mean / np.log(10))
        spread = max(square / pixels - mean**2, 0.0) ** 0.5
        if power == 0 or abs(mean - power * np.log(10)) > self.CLOSE or spread > self.ALIKE:
            return None
        return f"are {10.0**power:g} times the labels everywhere: save them in the labels' unit"


# The identity, red and blue exchanged, then every other order and sign of the axes: for each axis its channel and sign.
_AXES = sorted(
    (
        tuple(zip(order, signs))
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ),
    key=lambda how: (how != tuple(zip((0, 1, 2), (1, 1, 1))), how),
)


def _in_words(how: tuple[tuple[int, int], ...]) -> str:
    axes = [""] * 3
    for axis, (channel, sign) in zip("xyz", how):
        axes[channel] = f"{'-' if sign < 0 else ''}{axis}"
    swapped = " (red and blue exchanged)" if axes == ["z", "y", "x"] else ""
    return f"[{', '.join(axes)}]{swapped}"
