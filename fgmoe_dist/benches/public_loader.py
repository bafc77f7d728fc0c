"""The field's usual loader, told again as a yardstick for `fgmoe bench data`: a file a label, whole-image transforms.

It does what the public code of the MTI-Net, ATRC and InvPT line does at every access, in its order: opens each file
with Pillow or scipy, makes PASCAL's edges, parts and normal masks anew, scales the whole image and every label with
OpenCV, crops, flips, distorts step by step, normalises, pads, and stacks tensors. Only its speed is wanted; nothing
trains on it.

Shapes: H, W the image as it stands; C = 3.
"""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from fgmoe_dist.data.layouts import Layout
from fgmoe_dist.data.layouts.base import thin
from fgmoe_dist.data.layouts.pascal import NORMALS_LABELMAP_IDS, merge_person_parts

PADDING = {"image": 0, "depth": 0, "semseg": 255, "human_parts": 255, "sal": 255, "edge": 255, "normals": 255}


class PublicLoader(Dataset):
    """A map-style data set over an archive on disk.

    Args:
        layout: which archive, and where.
        size_hw: of the tensors.
        mean, std: three numbers each in 0..1.
    """

    def __init__(self, layout: Layout, size_hw: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]):
        self.layout, self.size_hw, self.ids = layout, size_hw, layout.ids("train")
        self.mean_C, self.std_C = np.array(mean, np.float32), np.array(std, np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        id_ = self.ids[index]
        image_HWC = np.array(Image.open(self.layout.image_path(id_)).convert("RGB")).astype(np.float32)
        read = _read_nyud if self.layout.dataset == "nyud" else _read_pascal
        sample = {"image": image_HWC, **read(self.layout.root, id_, image_HWC.shape[:2])}
        sample = _crop(_scale(sample), self.size_hw)
        if random.random() < 0.5:
            sample = {key: np.fliplr(value).copy() for key, value in sample.items()}
            sample["normals"][..., 0] *= -1
        image_HWC = _distort(sample["image"].astype(np.uint8)).astype(np.float32)
        sample["image"] = (image_HWC / 255 - self.mean_C) / self.std_C
        sample = _pad(sample, self.size_hw)
        invalid_HW = np.linalg.norm(sample["normals"], axis=2) == 0
        sample["normals"][invalid_HW] = 255
        return {
            key: torch.from_numpy(np.ascontiguousarray(np.atleast_3d(value).transpose(2, 0, 1))).float()
            for key, value in sample.items()
        }


def _read_nyud(root: Path, id_: str, _size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    semseg_HW = np.array(Image.open(root / "segmentation" / f"{id_}.png")).astype(np.float32) - 1
    semseg_HW[semseg_HW == -1] = 255
    return {
        "semseg": semseg_HW,
        "depth": np.load(root / "depth" / f"{id_}.npy").astype(np.float32),
        "normals": np.array(Image.open(root / "normals" / f"{id_}.png")).astype(np.float32) * 2 / 255 - 1,
        "edge": (np.array(Image.open(root / "edge" / f"{id_}.png")) > 127).astype(np.float32),
    }


def _read_pascal(root: Path, id_: str, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    labelmap_HW = loadmat(root / "pascal-context/trainval" / f"{id_}.mat")["LabelMap"]
    parts = loadmat(root / "human_parts" / f"{id_}.mat")["anno"]
    coded_HWC = np.array(Image.open(root / "normals_distill" / f"{id_}.png")).astype(np.float32) * 2 / 255 - 1
    normals_HWC = np.zeros_like(coded_HWC)
    for value in np.intersect1d(labelmap_HW, NORMALS_LABELMAP_IDS):
        normals_HWC[labelmap_HW == value] = coded_HWC[labelmap_HW == value]
    return {
        "semseg": np.array(Image.open(root / "semseg/VOC12" / f"{id_}.png")).astype(np.float32),
        "human_parts": merge_person_parts(parts, size_hw).astype(np.float32),
        "sal": (np.array(Image.open(root / "sal_distill" / f"{id_}.png")) > 127).astype(np.float32),
        "normals": normals_HWC,
        "edge": thin(np.abs(cv2.Laplacian(labelmap_HW.astype(np.float64), cv2.CV_64F)) > 0).astype(np.float32),
    }


def _scale(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scale = random.uniform(0.5, 2.0)
    scaled = {
        key: cv2.resize(
            value, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR if key == "image" else cv2.INTER_NEAREST
        )
        for key, value in sample.items()
    }
    if "depth" in scaled:
        scaled["depth"] /= scale
    return scaled


def _crop(sample: dict[str, np.ndarray], size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """A crop with at most 75 % of one class, if ten tries find one."""
    height, width = sample["image"].shape[:2]
    for _ in range(10):
        top = random.randint(0, max(0, height - size_hw[0]))
        left = random.randint(0, max(0, width - size_hw[1]))
        part = np.s_[top : top + size_hw[0], left : left + size_hw[1]]
        labels, counts = np.unique(sample["semseg"][part], return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
    return {key: value[part] for key, value in sample.items()}


def _distort(image_HWC: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue, one after the other, rounded to uint8 after each."""

    def change(array: np.ndarray, factor: float = 1, shift: float = 0) -> np.ndarray:
        return np.clip(array.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)

    if random.random() < 0.5:
        image_HWC = change(image_HWC, shift=random.uniform(-32, 32))
    contrast_first = random.random() < 0.5
    if contrast_first and random.random() < 0.5:
        image_HWC = change(image_HWC, random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        hsv_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HSV)
        hsv_HWC[..., 1] = change(hsv_HWC[..., 1], random.uniform(0.5, 1.5))
        image_HWC = cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB)
    if random.random() < 0.5:
        hsv_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HSV)
        hsv_HWC[..., 0] = (hsv_HWC[..., 0].astype(int) + random.randint(-18, 17)) % 180
        image_HWC = cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB)
    if not contrast_first and random.random() < 0.5:
        image_HWC = change(image_HWC, random.uniform(0.5, 1.5))
    return image_HWC


def _pad(sample: dict[str, np.ndarray], size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    height, width = (max(0, size - side) for size, side in zip(size_hw, sample["image"].shape[:2]))
    top, left = height // 2, width // 2
    return {
        key: cv2.copyMakeBorder(
            value, top, height - top, left, width - left, cv2.BORDER_CONSTANT, value=[PADDING[key]] * 3
        )
        for key, value in sample.items()
    }
