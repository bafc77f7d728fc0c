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
from fgmoe_dist.errors import UserError
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

    def image_path(self, id_: str) -> Path:
        return self.root / "images" / f"{id_}.png"

    def sources(self, id_: str) -> list[Path]:
        labels = (f"segmentation/{id_}.png", f"depth/{id_}.npy", f"normals/{id_}.png", f"edge/{id_}.png")
        return [self.image_path(id_), *(self.root / name for name in labels)]

    def read_labels(self, id_: str) -> dict[str, np.ndarray]:
        edge_HW = read_binary(self.root / "edge" / f"{id_}.png")
        return {
            "semseg": self._semseg(id_),
            "depth": self._depth(id_),
            "normals": colours(self.root / "normals" / f"{id_}.png", 3),
            "edge": edge_HW,
            "boundary": thin(region_boundary(edge_HW)),
        }

    def _semseg(self, id_: str) -> np.ndarray:
        path = self.root / "segmentation" / f"{id_}.png"
        label_HW = read_label_map(path, range(len(NYU_40) + 1))
        return label_HW - np.uint8(1)  # wraps: 0, unlabelled, becomes 255

    def _depth(self, id_: str) -> np.ndarray:
        path = self.root / "depth" / f"{id_}.npy"
        depth_HW = as_float32(read_array(path), path)
        return np.where(np.isfinite(depth_HW) & (depth_HW > 0), depth_HW, np.float32(0))

    def _check_root(self) -> None:
        first = next(iter(sorted((self.root / "images").glob("*.*"))), None)
        if (first is not None and first.suffix == ".jpg") or any((self.root / "segmentation").glob("*.npy")):
            raise UserError(
                f"{self.root} is the NYUD_MT archive (.jpg images, .npy labels), whose labels mean other things: "
                "give the NYUDv2 archive (.png images, 425x560)"
            )
        super()._check_root()
