"""From a stored or native sample to training tensors, with the field's augmentations, and to evaluation input and back.

The order and ranges are those of the field's public code (MTI-Net, ATRC, InvPT): random scale, random crop with at most
75 % of one class, flip, photometric distortion, normalisation, centred padding. What differs is only where the work is
done: the crop is chosen in the scaled image's coordinates but cut from the source, so no scaled image is ever made.
Labels are sampled at the centre of each output pixel, where the bilinear image is, so both stay aligned at any scale.

What a label's values become under all this is its kind's to say (`fgmoe_dist/labels`).

Shapes: H, W source; h, w the crop before padding; SH, SW the tensor's size; C = 3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from fgmoe_dist.data.settings import Data
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import Label
from fgmoe_dist.tasks.labelling import KNOWN_KEYS

MAX_CLASS_SHARE = 0.75
CROP_TRIES = 10
BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # in OpenCV's half degrees

_VIEW = 3  # keeps the views' random streams apart from those of `stream.py`


@dataclass(frozen=True)
class Window:
    """A crop of a scaled and possibly flipped image, in the coordinates of the scaled one."""

    source_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def nearest(self, array_HWx: np.ndarray) -> np.ndarray:
        """The window of a label, each output pixel taking the source pixel under its centre."""
        rows_h = self._sources(self.top, self.height, self.source_hw[0], self.scaled_hw[0])
        cols_w = self._sources(self.left, self.width, self.source_hw[1], self.scaled_hw[1])
        cols_w = cols_w[::-1] if self.flip else cols_w
        if self.scaled_hw > self.source_hw:  # widen the few source rows first, then repeat them
            return array_HWx[rows_h[0] : rows_h[-1] + 1].take(cols_w, axis=1).take(rows_h - rows_h[0], axis=0)
        return array_HWx.take(rows_h, axis=0).take(cols_w, axis=1)

    def linear(self, image_HWC: np.ndarray) -> np.ndarray:
        """The window of an image, bilinear."""
        fy = self.source_hw[0] / self.scaled_hw[0]
        fx = self.source_hw[1] / self.scaled_hw[1]
        y = (self.top + 0.5) * fy - 0.5
        x = (self.left + (self.width - 0.5 if self.flip else 0.5)) * fx - 0.5
        return cv2.warpAffine(
            image_HWC,
            np.array([[-fx if self.flip else fx, 0, x], [0, fy, y]]),
            (self.width, self.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def stored(self, label: Label, array_HWx: np.ndarray) -> np.ndarray:
        """The window of a label, stored or native as it was, its values following the geometry."""
        label_hwx = label.rescale(self.nearest(array_HWx), self.scaled_hw[0] / self.source_hw[0])
        return label.mirror(label_hwx) if self.flip else label_hwx

    @staticmethod
    def _sources(start: int, count: int, source: int, scaled: int) -> np.ndarray:
        # (2i + 1) * source / (2 * scaled), in integers: no rounding can move a label by a pixel
        return (2 * np.arange(start, start + count) + 1) * source // (2 * scaled)


class Transform:
    """Turns stored or native samples into the tensors of a batch (docs/contracts.md), written where they will lie.

    To make a tensor an image and stack them would touch twice the memory, and memory is what bounds a loader.
    """

    keys: tuple[str, ...]  # what to decode

    def __init__(self, size_hw: tuple[int, int], tasks: Sequence[str], labels: Mapping[str, Label]):
        self.size_hw, self.tasks = tuple(size_hw), tuple(tasks)
        for task in self.tasks:
            if task not in labels:
                raise UserError(f"task {task!r} has no label of a known kind: it cannot be batched")
        self.labels = {task: labels[task] for task in self.tasks}

    def empty(self, count: int) -> dict:
        """A batch of `count` samples that nobody has filled: every label ignored."""
        labels = {task: label.empty(count, self.size_hw) for task, label in self.labels.items()}
        return {"id": [""] * count, **self._empty_input(count), **labels}

    def fill(self, batch: dict, index: int, sample: dict, rng: np.random.Generator) -> None:
        """Write a sample into its place of a batch.

        Args:
            batch: from `empty`.
            index: the place, which must be as `empty` made it.
            sample: arrays of `keys` as far as the sample has them, and `id`.
            rng: the only source of chance.
        """
        raise NotImplementedError

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        """One sample's tensors, without the batch's first dimension."""
        batch = self.empty(1)
        self.fill(batch, 0, sample, rng)
        return {key: [level[0] for level in value] if key == "features" else value[0] for key, value in batch.items()}

    def _empty_input(self, count: int) -> dict:
        raise NotImplementedError

    def _fill_labels(self, batch: dict, index: int, labels: dict[str, np.ndarray]) -> None:
        for task, label in self.labels.items():
            if task in labels:
                label.fill(unpad(batch[task][index].numpy(), labels[task].shape[:2]), labels[task])


class TrainTransform(Transform):
    """Augments images, and their labels with them.

    Args:
        size_hw: height and width of the tensors.
        mean, std: of the encoder, for pixels in 0..1.
        tasks: labels to make; one that a sample lacks has no valid pixel.
        scale_range: the random scale is uniform in it.
        flip: mirror every other sample.
        photometric: distort brightness, contrast, saturation and hue.
        random_crop: crop at random; off, in the middle.
        labels: of the data set, by key (`ShardSet.labels`); by default those of the six known tasks.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        tasks: Sequence[str],
        scale_range: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        photometric: bool = True,
        random_crop: bool = True,
        labels: Mapping[str, Label] = KNOWN_KEYS,
    ):
        super().__init__(size_hw, tasks, labels)
        self.mean, self.std = mean, std
        self.scale_range = scale_range
        self.flip, self.photometric, self.random_crop = flip, photometric, random_crop

    @property
    def keys(self) -> tuple[str, ...]:
        """What to decode. The crop looks at semseg even where it is no task, so that runs with other tasks see the
        same crops."""
        return tuple(dict.fromkeys((*self.tasks, "semseg")))

    def fill(self, batch: dict, index: int, sample: dict, rng: np.random.Generator) -> None:
        batch["id"][index] = sample["id"]
        self._fill_labels(batch, index, self.view(sample, rng, batch["image"][index]))

    def view(self, sample: dict, rng: np.random.Generator, image_3HW: torch.Tensor) -> dict[str, np.ndarray]:
        """Writes the augmented image into `image_3HW`, of zeros; the labels that the sample has, cropped as it was.

        They are not padded and in the form, stored or native, that they had: as a feature cache keeps them.
        """
        window = self._window(sample, rng)
        image_hwC = window.linear(sample["image"])
        if self.photometric:
            image_hwC = distort(image_hwC, rng)
        fill_image(image_3HW, image_hwC, self.mean, self.std)
        return {task: window.stored(label, sample[task]) for task, label in self.labels.items() if task in sample}

    def _empty_input(self, count: int) -> dict:
        return {"image": torch.zeros(count, 3, *self.size_hw)}

    def _window(self, sample: dict, rng: np.random.Generator) -> Window:
        source_hw = sample["image"].shape[:2]
        scale = rng.uniform(*self.scale_range)
        # int(), as the field has it; the tolerance is for 1.0 * n after rounding
        scaled_hw = tuple(max(1, int(side * scale + 1e-9)) for side in source_hw)
        window = self._crop(source_hw, scaled_hw, sample.get("semseg"), rng)
        if self.flip and rng.random() < 0.5:
            window = replace(window, flip=True)
        return window

    def _crop(
        self,
        source_hw: tuple[int, int],
        scaled_hw: tuple[int, int],
        semseg_HW: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Window:
        """A crop that is not nearly all one class, if ten tries find one."""
        spare_hw = [max(0, scaled - size) for scaled, size in zip(scaled_hw, self.size_hw)]
        crop_hw = [min(scaled, size) for scaled, size in zip(scaled_hw, self.size_hw)]
        if not self.random_crop:
            return Window(source_hw, scaled_hw, spare_hw[0] // 2, spare_hw[1] // 2, *crop_hw)
        for _ in range(CROP_TRIES):
            top, left = (int(rng.integers(spare + 1)) for spare in spare_hw)
            window = Window(source_hw, scaled_hw, top, left, *crop_hw)
            if semseg_HW is None or not any(spare_hw) or _is_mixed(window.nearest(semseg_HW)):
                break
        return window


class FeatureTransform(Transform):
    """Takes views from a cache (`fgmoe shards features`); they were augmented when it was built.

    Args:
        size_hw: height and width of the label tensors.
        tasks: labels to make, as in `TrainTransform`.
        levels_Chw: the shape of each encoder level.
        labels: as in `TrainTransform`.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        tasks: Sequence[str],
        levels_Chw: Sequence[tuple[int, int, int]],
        labels: Mapping[str, Label] = KNOWN_KEYS,
    ):
        super().__init__(size_hw, tasks, labels)
        self.levels_Chw = tuple(levels_Chw)
        self.keys = ("features", *self.tasks)

    def fill(self, batch: dict, index: int, sample: dict, rng: np.random.Generator) -> None:
        batch["id"][index] = sample["id"]
        levels = torch.from_numpy(sample["features"]).split([math.prod(shape) for shape in self.levels_Chw])
        for level_BChw, level in zip(batch["features"], levels):
            level_BChw[index] = level.view(level_BChw.shape[1:])
        self._fill_labels(batch, index, sample)

    def _empty_input(self, count: int) -> dict:
        return {"features": [torch.empty(count, *shape, dtype=torch.float16) for shape in self.levels_Chw]}


class EvalTransform:
    """Makes a sample's image an input of the network: native resolution, centred padding, nothing else.

    Args:
        size_hw: height and width of the tensor.
        mean, std: of the encoder, for pixels in 0..1.
    """

    def __init__(self, size_hw: tuple[int, int], mean: Sequence[float], std: Sequence[float]):
        self.size_hw, self.mean, self.std = tuple(size_hw), mean, std

    def __call__(self, sample: dict) -> torch.Tensor:
        """float32 [3, SH, SW].

        Raises:
            UserError: the image is larger than the tensor.
        """
        height, width = sample["image"].shape[:2]
        if height > self.size_hw[0] or width > self.size_hw[1]:
            raise UserError(
                f"image {sample['id']} is {height}x{width}, larger than data.image_size "
                f"{self.size_hw[0]}x{self.size_hw[1]}: evaluation never resizes, so set data.image_size to hold it"
            )
        return normalise(sample["image"], self.mean, self.std, self.size_hw)


def train_transform(
    data: Data,
    mean: Sequence[float],
    std: Sequence[float],
    tasks: Sequence[str],
    labels: Mapping[str, Label] = KNOWN_KEYS,
) -> TrainTransform:
    """The augmentation that the settings describe, for an encoder of this mean and std."""
    return TrainTransform(
        data.image_size, mean, std, tasks,
        scale_range=data.scale_range if data.augment else (1.0, 1.0),
        flip=data.augment, photometric=data.augment, random_crop=data.augment, labels=labels,
    )  # fmt: skip


def unpad(array_xHW, native_hw: tuple[int, int]):
    """The native part of a centred-padded array or tensor `[..., SH, SW]`, as a view."""
    top, left = ((outer - inner) // 2 for inner, outer in zip(native_hw, array_xHW.shape[-2:]))
    return array_xHW[..., top : top + native_hw[0], left : left + native_hw[1]]


def unpad_prediction(prediction_HWx: np.ndarray, native_hw: tuple[int, int]) -> np.ndarray:
    """`unpad` of a prediction `[SH, SW]` or `[SH, SW, C]`."""
    if prediction_HWx.ndim == 2:
        return unpad(prediction_HWx, native_hw)
    return np.moveaxis(unpad(np.moveaxis(prediction_HWx, -1, 0), native_hw), 0, -1)


def normalise(
    image_hwC: np.ndarray, mean: Sequence[float], std: Sequence[float], size_hw: tuple[int, int]
) -> torch.Tensor:
    """float32 [3, SH, SW]: (x / 255 - mean) / std, centred, 0 in the padding (the mean colour)."""
    tensor_3HW = torch.zeros(3, *size_hw)
    fill_image(tensor_3HW, image_hwC, mean, std)
    return tensor_3HW


def fill_image(tensor_3HW: torch.Tensor, image_hwC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write (x / 255 - mean) / std into the middle of a tensor."""
    inner_Chw = unpad(tensor_3HW.numpy(), image_hwC.shape[:2])
    for c, plane_hw in enumerate(cv2.split(image_hwC)):  # numpy is slow along an axis of three
        np.multiply(plane_hw, np.float32(1 / (255 * std[c])), out=inner_Chw[c])
        inner_Chw[c] -= np.float32(mean[c] / std[c])


def view_generator(seed: int, id_: str, view: int) -> np.random.Generator:
    """The generator that augments an image into one of its numbered views, wherever in the data it stands."""
    digest = hashlib.sha256(id_.encode()).digest()
    return np.random.default_rng([seed, _VIEW, view, int.from_bytes(digest[:8], "little")])


def distort(image_hwC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion of a uint8 RGB image: each of brightness, contrast, saturation, hue half of the time.

    Contrast comes before or after the colour changes, by a coin. Each step rounds to uint8 as the field's code does;
    all steps on single values are table look-ups.
    """
    values = np.arange(256, dtype=np.float32)
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS) if rng.random() < 0.5 else 0.0
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else 0

    table = _to_uint8(values + brightness)
    if contrast_first:
        table = _to_uint8(table * contrast)
    image_hwC = cv2.LUT(image_hwC, table)
    if saturation != 1.0 or hue != 0:
        hsv_hwC = cv2.cvtColor(image_hwC, cv2.COLOR_RGB2HSV)
        tables = np.stack([(values + hue) % 180, values * saturation, values], axis=-1)
        image_hwC = cv2.cvtColor(cv2.LUT(hsv_hwC, _to_uint8(tables)[None]), cv2.COLOR_HSV2RGB)
    if not contrast_first and contrast != 1.0:
        image_hwC = cv2.LUT(image_hwC, _to_uint8(values * contrast))
    return image_hwC


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _is_mixed(semseg_hw: np.ndarray) -> bool:
    """Whether at least two classes are there and none has 75 % of the labelled pixels."""
    ignore = int(np.iinfo(semseg_hw.dtype).max)
    histogram = cv2.calcHist([np.ascontiguousarray(semseg_hw)], [0], None, [ignore + 1], [0, ignore + 1])
    counts = histogram.ravel()[:ignore]
    return np.count_nonzero(counts) > 1 and counts.max() < MAX_CLASS_SHARE * counts.sum()
