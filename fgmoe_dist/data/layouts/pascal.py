"""PASCAL-Context as in the archive `PASCALContext`.

Shapes: H, W native size; C = 3.
"""

# ruff: noqa: SIM905 (lists of words read best as words)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from fgmoe_dist.data.label_files import colours
from fgmoe_dist.data.layouts.base import Layout, read_binary, read_label_map, thin
from fgmoe_dist.data.named import named
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import IGNORE
from fgmoe_dist.labels.vectors import mark_invalid
from fgmoe_dist.metrics.boundary.regions import region_boundary

VOC_21 = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
PARTS_7 = ("background", "head", "torso", "upper-arm", "lower-arm", "upper-leg", "lower-leg")

# PASCAL-Part's names of a person's parts -> PARTS_7. Left and right are one class, so a flip swaps nothing.
PERSON_PARTS = {
    **dict.fromkeys("hair head lear rear lebrow rebrow leye reye mouth nose".split(), 1),
    **dict.fromkeys("torso neck".split(), 2),
    **dict.fromkeys("luarm ruarm".split(), 3),
    **dict.fromkeys("llarm rlarm lhand rhand".split(), 4),
    **dict.fromkeys("luleg ruleg".split(), 5),
    **dict.fromkeys("llleg rlleg lfoot rfoot".split(), 6),
}
PERSON = 15

# LabelMap ids whose distilled normals the field keeps: the classes NYU and PASCAL-Context share, and tvmonitor.
NORMALS_LABELMAP_IDS = np.array(
    """3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51 53 55 56 59 61 62 65 66 68 69 72 73 78
    83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135 141 142 143 146 150 154 157 158 159 165 172 174 181 183
    184 191 193 195 197 199 202 213 215 216 219 220 223 225 228 230 232 233 238 239 242 243 246 250 251 252 255 260 261
    263 269 272 273 275 281 283 284 285 286 287 288 290 291 292 293 295 304 307 309 310 314 315 319 323 329 330 331 336
    342 345 349 350 351 352 355 357 368 370 371 374 379 380 383 384 397 401 403 405 407 408 411 412 413 414 417 419 421
    423 427 429 430 432 440 441 442 443 444 446 454 457""".split(),
    dtype=np.int64,
)


class PASCALContext(Layout):
    """4998 / 5105 images, longer side 500."""

    dataset = "pascal"
    tasks = ("semseg", "human_parts", "sal", "normals", "edge")
    classes = {"semseg": VOC_21, "human_parts": PARTS_7}
    boundary_max_dist = 0.0075
    folder = "PASCALContext"
    id_lists = "ImageSets/Context"
    needs = (
        "ImageSets/Context",
        "JPEGImages",
        "semseg",
        "pascal-context/trainval",
        "human_parts",
        "normals_distill",
        "sal_distill",
    )
    published = {"train": 4998, "val": 5105}
    size = "500 along the longer side"

    def image_path(self, id_: str) -> Path:
        return self.file_of("image", id_)

    def places(self, id_: str) -> dict[str, list[Path]]:
        names = {
            "image": [f"JPEGImages/{id_}.jpg"],
            "semseg": [f"semseg/VOC12/{id_}.png", f"semseg/pascal-context/{id_}.png"],
            "human_parts": [f"human_parts/{id_}.mat"],
            "sal": [f"sal_distill/{id_}.png"],
            "normals": [f"normals_distill/{id_}.png"],
            "edge": [f"pascal-context/trainval/{id_}.mat"],
        }
        return {key: [self.root / name for name in some] for key, some in names.items()}

    def sources(self, id_: str) -> list[Path]:
        return self.placed(id_)

    def has_size(self, size_hw: tuple[int, int]) -> bool:
        return max(size_hw) == 500

    def read_labels(self, id_: str) -> dict[str, np.ndarray]:
        labelmap_HW = self._labelmap(id_)
        return {
            "semseg": self._semseg(id_),
            "human_parts": self._human_parts(id_, labelmap_HW.shape),
            "sal": read_binary(self.file_of("sal", id_)),
            "normals": self._normals(id_, labelmap_HW),
            "edge": thin(cv2.Laplacian(labelmap_HW.astype(np.float64), cv2.CV_64F) != 0),
            "boundary": thin(region_boundary(labelmap_HW)),
        }

    def _semseg(self, id_: str) -> np.ndarray:
        path = self.file_of("semseg", id_)
        if not path.exists():
            folders = " nor ".join(str(place.parent) for place in self.places(id_)["semseg"])
            raise UserError(f"image {id_} has no semseg in {folders}; unpack the archive again")
        return read_label_map(path, (*range(len(VOC_21)), IGNORE))

    def _labelmap(self, id_: str) -> np.ndarray:
        path = self.file_of("edge", id_)
        content = _load_mat(path)
        labelmap_HW = content.get("LabelMap", np.empty(0))
        if labelmap_HW.ndim != 2 or labelmap_HW.dtype.kind not in "biuf":
            raise UserError(f"{path} has no LabelMap matrix: unpack the archive again")
        return labelmap_HW

    def _normals(self, id_: str, labelmap_HW: np.ndarray) -> np.ndarray:
        path = self.file_of("normals", id_)
        rgb_HWC = colours(path, 3)
        if rgb_HWC.shape[:2] != labelmap_HW.shape:
            raise UserError(f"{path} is {rgb_HWC.shape[:2]} but its LabelMap is {labelmap_HW.shape}; replace that file")
        return mark_invalid(rgb_HWC, np.isin(labelmap_HW, NORMALS_LABELMAP_IDS))

    def _human_parts(self, id_: str, shape_HW: tuple[int, int]) -> np.ndarray:
        path = self.file_of("human_parts", id_)
        content = _load_mat(path)
        try:
            return merge_person_parts(content["anno"], shape_HW)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no PASCAL-Part annotation of this image ({error}); replace it") from error


def merge_person_parts(anno: np.ndarray, shape_HW: tuple[int, int]) -> np.ndarray:
    """One map of the parts of all persons of a PASCAL-Part annotation.

    Fields are taken by position, as all public code does: an object is (class name, class number, mask, parts), a part
    (name, mask). Later parts lie over earlier ones. Scalars may be bare or 1x1 arrays, objects may have no parts.

    Args:
        anno: the `anno` struct of `human_parts/ID.mat`, as `scipy.io.loadmat` gives it.
        shape_HW: size of the image.

    Returns:
        uint8 [H, W]: 0 background, 1..6 as PARTS_7; all 255 if no pixel belongs to a part.

    Raises:
        ValueError: a person's part of unknown name, or a mask of another size.
    """
    parts_HW = np.zeros(shape_HW, np.uint8)
    for record in _structs(anno):
        for obj in _structs(record[1]):
            if int(_scalar(obj[1])) != PERSON:
                continue
            for part in _structs(obj[3]):
                _paint_part(parts_HW, str(_scalar(part[0])).strip(), np.asarray(part[1]))
    return parts_HW if parts_HW.any() else np.full(shape_HW, IGNORE, np.uint8)


def _paint_part(parts_HW: np.ndarray, name: str, mask_HW: np.ndarray) -> None:
    if name not in PERSON_PARTS:
        raise ValueError(f"unknown part {name!r} of a person")
    if mask_HW.shape != parts_HW.shape:
        raise ValueError(f"mask of part {name!r} is {mask_HW.shape}, its image {parts_HW.shape}")
    parts_HW[mask_HW.astype(bool)] = PERSON_PARTS[name]


def _structs(array: np.ndarray) -> Iterator[np.void]:
    """The records of a MATLAB struct array, or of a cell array of structs; none for an empty matrix."""
    for item in np.ravel(array):
        while isinstance(item, np.ndarray):
            if item.size == 0:
                break
            item = item.ravel()[0]
        else:
            yield item


def _scalar(value: object) -> object:
    """The value inside MATLAB's 1x1 arrays, however deep."""
    while isinstance(value, np.ndarray):
        value = value.ravel()[0]
    return value


def _load_mat(path: Path) -> dict:
    from scipy.io import loadmat

    with named(path):
        return loadmat(path)
