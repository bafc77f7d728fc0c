"""Writes tiny archives in the layouts of NYUDv2 and PASCALContext, every value of which a test can know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE_HW = (12, 16)


def write_nyud(root: Path, train: int = 5, val: int = 3, size_hw: tuple[int, int] = SIZE_HW) -> Path:
    """A NYUDv2 archive of random images with ids 0001, 0002, ...; val goes on counting where train ends."""
    for folder in ("gt_sets", "images", "segmentation", "depth", "normals", "edge"):
        (root / folder).mkdir(parents=True)
    ids = [f"{number:04d}" for number in range(1, train + val + 1)]
    (root / "gt_sets" / "train.txt").write_text("\n".join(ids[:train]) + "\n")
    (root / "gt_sets" / "val.txt").write_text("\n".join(ids[train:]) + "\n")
    for number, id_ in enumerate(ids):
        rng = np.random.default_rng(number)
        save(root / "images" / f"{id_}.png", rng.integers(0, 256, (*size_hw, 3)))
        save(root / "segmentation" / f"{id_}.png", rng.integers(0, 41, size_hw))
        save(root / "normals" / f"{id_}.png", rng.integers(0, 256, (*size_hw, 3)))
        save(root / "edge" / f"{id_}.png", 255 * rng.integers(0, 2, size_hw))
        np.save(root / "depth" / f"{id_}.npy", rng.uniform(0.5, 10, size_hw) * rng.integers(0, 2, size_hw))
    return root


def write_pascal(root: Path, train: int = 2, val: int = 1, size_hw: tuple[int, int] = SIZE_HW) -> Path:
    """A PASCALContext archive of random images with ids 2008_000001, ..., each with a person of head and torso."""
    folders = (
        "ImageSets/Context JPEGImages semseg/VOC12 semseg/pascal-context pascal-context/trainval human_parts "
        "normals_distill sal_distill"
    )
    for folder in folders.split():
        (root / folder).mkdir(parents=True)
    ids = [f"2008_{number:06d}" for number in range(1, train + val + 1)]
    (root / "ImageSets/Context/train.txt").write_text("\n".join(ids[:train]) + "\n")
    (root / "ImageSets/Context/val.txt").write_text("\n".join(ids[train:]) + "\n")
    for number, id_ in enumerate(ids):
        rng = np.random.default_rng(number)
        save(root / "JPEGImages" / f"{id_}.jpg", rng.integers(0, 256, (*size_hw, 3)))
        save(root / "semseg" / "VOC12" / f"{id_}.png", rng.choice([*range(21), 255], size_hw))
        save(root / "normals_distill" / f"{id_}.png", rng.integers(0, 256, (*size_hw, 3)))
        save(root / "sal_distill" / f"{id_}.png", rng.integers(0, 256, size_hw))
        labelmap_HW = rng.integers(1, 460, (size_hw[0] // 4, size_hw[1] // 4)).repeat(4, 0).repeat(4, 1)
        savemat(root / "pascal-context/trainval" / f"{id_}.mat", {"LabelMap": labelmap_HW.astype(np.uint16)})
        head_HW, torso_HW = np.zeros(size_hw, np.uint8), np.zeros(size_hw, np.uint8)
        head_HW[1:3, 4:6] = 1
        torso_HW[3:8, 3:7] = 1
        person = obj(15, head_HW | torso_HW, [("head", head_HW), ("torso", torso_HW)])
        save_parts(root / "human_parts" / f"{id_}.mat", [person])
    return root


def save(path: Path, array: np.ndarray) -> None:
    """A picture of 8-bit values."""
    Image.fromarray(array.astype(np.uint8)).save(path)


OBJECT = np.dtype([("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")])
PART = np.dtype([("part_name", "O"), ("mask", "O")])


def obj(class_number: float, mask_HW: np.ndarray, parts: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """One object of a PASCAL-Part annotation; without parts MATLAB has an empty matrix there."""
    parts_1P = np.zeros((0, 0))
    if parts:
        parts_1P = np.empty((1, len(parts)), PART)
        for p, (name, part_HW) in enumerate(parts):
            parts_1P[0, p] = (name, part_HW)
    return np.array(("anything", class_number, mask_HW, parts_1P), OBJECT)


def save_parts(path: Path, objects: list[np.ndarray]) -> None:
    """`anno` as in the archive: read back by `loadmat(path)["anno"][0][0][1][0]`, object by object."""
    objects_1N = np.zeros((0, 0))
    if objects:
        objects_1N = np.empty((1, len(objects)), OBJECT)
        for n, item in enumerate(objects):
            objects_1N[0, n] = item
    savemat(path, {"anno": {"imname": path.stem, "objects": objects_1N}})
