"""NYUD-v2 as in the archive `NYUDv2`.

Shapes: H, W native size.
"""

# ruff: noqa: SIM905 (lists of words read best as words)

from __future__ import annotations

from pathlib import Path

import numpy as np

from fgmoe_dist.data.arrays import as_float32, read_array
from fgmoe_dist.data.label_files import colours
from fgmoe_dist.data.layouts.base import Layout, read_binary, read_label_map, thin
from fgmoe_dist.metrics.boundary.regions import region_boundary

NYU_40 = tuple(
    "wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves curtain dresser "
    "pillow mirror floor-mat clothes ceiling books refrigerator television paper towel shower-curtain box whiteboard "
    "person night-stand toilet sink lamp bathtub bag otherstructure otherfurniture otherprop".split()
)


class NYUDv2(Layout):
    """795 / 654 images of 425x560."""

    dataset = "nyud"
    tasks = ("semseg", "depth", "normals", "edge")
    classes = {"semseg": NYU_40}
    boundary_max_dist = 0.011
    folder = "NYUDv2"
    id_lists = "gt_sets"
    needs = ("gt_sets", "images", "segmentation", "depth", "normals", "edge")
    published = {"train": 795, "val": 654}
    size = "425x560"

    def image_path(self, id_: str) -> Path:
        return self.file_of("image", id_)

    def places(self, id_: str) -> dict[str, list[Path]]:
        names = {
            "image": f"images/{id_}.png",
            "semseg": f"segmentation/{id_}.png",
            "depth": f"depth/{id_}.npy",
            "normals": f"normals/{id_}.png",
            "edge": f"edge/{id_}.png",
        }
        return {key: [self.root / name] for key, name in names.items()}

    def sources(self, id_: str) -> list[Path]:
        return self.placed(id_)

    def has_size(self, size_hw: tuple[int, int]) -> bool:
        return size_hw == (425, 560)

    def read_labels(self, id_: str) -> dict[str, np.ndarray]:
        edge_HW = read_binary(self.file_of("edge", id_))
        return {
            "semseg": self._semseg(id_),
            "depth": self._depth(id_),
            "normals": colours(self.file_of("normals", id_), 3),
            "edge": edge_HW,
            "boundary": thin(region_boundary(edge_HW)),
        }

    def _semseg(self, id_: str) -> np.ndarray:
        label_HW = read_label_map(self.file_of("semseg", id_), range(len(NYU_40) + 1))
        return label_HW - np.uint8(1)  # wraps: 0, unlabelled, becomes 255

    def _depth(self, id_: str) -> np.ndarray:
        path = self.file_of("depth", id_)
        depth_HW = as_float32(read_array(path), path)
        return np.where(np.isfinite(depth_HW) & (depth_HW > 0), depth_HW, np.float32(0))

    def root_faults(self) -> list[str]:
        first = next(iter(sorted((self.root / "images").glob("*.*"))), None)
        arrays = [name for name in ("segmentation", "normals", "edge") if any((self.root / name).glob("*.npy"))]
        if (first is None or first.suffix != ".jpg") and not arrays:
            return super().root_faults()
        variant = (
            f"{self.root} is the NYUD_MT archive (.jpg images, .npy labels), whose labels mean other things: "
            "give the NYUDv2 archive (.png images, 425x560)"
        )
        return [variant, *super().root_faults()]
