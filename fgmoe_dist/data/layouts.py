"""Readers of the folder layouts of the field's archives: NYUDv2 and PASCALContext.

What each label means follows the public code of the MTI-Net, ATRC, InvPT and MLoRE line, which all read these two
archives. What those compute anew at every access (edges, merged parts, masked normals) is computed here, and the shard
builder calls it once an image. Thinning is `skimage.morphology.thin`, as there.

Shapes: H, W native size; C = 3.
"""

# ruff: noqa: SIM905 (lists of words read best as words)

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fgmoe_dist.data import codec
from fgmoe_dist.data.codec import IGNORE
from fgmoe_dist.errors import UserError

NYU_40 = tuple(
    "wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves curtain dresser "
    "pillow mirror floor-mat clothes ceiling books refrigerator television paper towel shower-curtain box whiteboard "
    "person night-stand toilet sink lamp bathtub bag otherstructure otherfurniture otherprop".split()
)
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


class Layout:
    """An archive on disk: which images there are, and the labels of each.

    Subclasses say where the files lie and what they mean. Instances are cheap, hold no open file and can be sent to
    other processes.
    """

    dataset: str
    tasks: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    boundary_max_dist: float
    splits = ("train", "val")
    folder: str
    id_lists: str
    needs: tuple[str, ...]

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._check_root()

    def ids(self, split: str) -> list[str]:
        """The image ids of a split, in the archive's order.

        Raises:
            UserError: no such split or list, an empty list, an id twice, or one that no shard could hold.
        """
        self._check_split(split)
        return read_id_list(self.root / self.id_lists / f"{split}.txt")

    def image_path(self, id_: str) -> Path:
        """Where the image of an id lies."""
        raise NotImplementedError

    def labels(self, id_: str) -> dict[str, np.ndarray]:
        """The stored form (see `codec`) of every label that an image has, without the image."""
        raise NotImplementedError

    def files(self, id_: str) -> list[Path]:
        """Files whose sizes tell one state of the data set from another; the first is the image."""
        return [self.image_path(id_)]

    def meaning(self) -> str:
        """What else decides the labels' values, as a line of text."""
        return ""

    def image(self, id_: str) -> np.ndarray:
        """The image, uint8 [H, W, 3] RGB."""
        return read_picture(self.image_path(id_), "RGB")

    def stored(self, id_: str) -> dict[str, np.ndarray]:
        """Image and labels in their stored form, all of one size.

        Raises:
            UserError: a file is missing, damaged, of the wrong size, or holds values outside its range.
        """
        image_HWC = self.image(id_)
        sample = {"image": image_HWC}
        for key, array in self.labels(id_).items():
            try:
                codec.check(key, array, image_HWC.shape[:2])
            except codec.CodecError as error:
                raise UserError(f"{self.root}: image {id_}: {error}; repair or remove that file") from error
            sample[key] = array
        return sample

    def read(self, id_: str) -> dict:
        """The sample as docs/contracts.md has it: native resolution, normals as unit vectors, `id` included."""
        return {"id": id_, **{key: codec.native(key, array) for key, array in self.stored(id_).items()}}

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"split is {split!r}: use one of {', '.join(self.splits)}")

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise UserError(f"data set root {self.root} is no folder: give the unpacked {self.folder} archive")
        if all((self.root / name).is_dir() for name in self.needs):
            return
        if all((self.root / self.folder / name).is_dir() for name in self.needs):
            raise UserError(f"data set root {self.root} is one folder too high: give {self.root / self.folder}")
        missing = [name for name in self.needs if not (self.root / name).is_dir()]
        raise UserError(
            f"{self.root} is no {self.folder} archive: it lacks {', '.join(missing)}; give the folder that holds them"
        )


class NYUDv2(Layout):
    """NYUD-v2 as in the archive `NYUDv2`: 795 / 654 images of 425x560."""

    dataset = "nyud"
    tasks = ("semseg", "depth", "normals", "edge")
    classes = {"semseg": NYU_40}
    boundary_max_dist = 0.011
    folder = "NYUDv2"
    id_lists = "gt_sets"
    needs = ("gt_sets", "images", "segmentation", "depth", "normals", "edge")

    def image_path(self, id_: str) -> Path:
        return self.root / "images" / f"{id_}.png"

    def labels(self, id_: str) -> dict[str, np.ndarray]:
        edge_HW = _binary(self.root / "edge" / f"{id_}.png")
        return {
            "semseg": self._semseg(id_),
            "depth": self._depth(id_),
            "normals": read_picture(self.root / "normals" / f"{id_}.png", "RGB"),
            "edge": edge_HW,
            "boundary": thin(region_boundary(edge_HW)),
        }

    def _semseg(self, id_: str) -> np.ndarray:
        path = self.root / "segmentation" / f"{id_}.png"
        label_HW = _label_map(path, range(len(NYU_40) + 1))
        return label_HW - np.uint8(1)  # wraps: 0, unlabelled, becomes 255

    def _depth(self, id_: str) -> np.ndarray:
        path = self.root / "depth" / f"{id_}.npy"
        with named(path):
            depth_HW = np.load(path, allow_pickle=False).astype(np.float32)
        return np.where(np.isfinite(depth_HW) & (depth_HW > 0), depth_HW, np.float32(0))

    def _check_root(self) -> None:
        first = next(iter(sorted((self.root / "images").glob("*.*"))), None)
        if (first is not None and first.suffix == ".jpg") or any((self.root / "segmentation").glob("*.npy")):
            raise UserError(
                f"{self.root} is the NYUD_MT archive (.jpg images, .npy labels), whose labels mean other things: "
                "give the NYUDv2 archive (.png images, 425x560)"
            )
        super()._check_root()


class PASCALContext(Layout):
    """PASCAL-Context as in the archive `PASCALContext`: 4998 / 5105 images, longer side 500."""

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

    def image_path(self, id_: str) -> Path:
        return self.root / "JPEGImages" / f"{id_}.jpg"

    def labels(self, id_: str) -> dict[str, np.ndarray]:
        labelmap_HW = self._labelmap(id_)
        return {
            "semseg": self._semseg(id_),
            "human_parts": self._human_parts(id_, labelmap_HW.shape),
            "sal": _binary(self.root / "sal_distill" / f"{id_}.png"),
            "normals": self._normals(id_, labelmap_HW),
            "edge": thin(cv2.Laplacian(labelmap_HW.astype(np.float64), cv2.CV_64F) != 0),
            "boundary": thin(region_boundary(labelmap_HW)),
        }

    def _semseg(self, id_: str) -> np.ndarray:
        folders = (self.root / "semseg" / "VOC12", self.root / "semseg" / "pascal-context")
        path = next((folder / f"{id_}.png" for folder in folders if (folder / f"{id_}.png").exists()), None)
        if path is None:
            raise UserError(f"image {id_} has no semseg in {folders[0]} nor {folders[1]}; unpack the archive again")
        return _label_map(path, (*range(len(VOC_21)), IGNORE))

    def _labelmap(self, id_: str) -> np.ndarray:
        path = self.root / "pascal-context" / "trainval" / f"{id_}.mat"
        content = _load_mat(path)
        if "LabelMap" not in content or content["LabelMap"].ndim != 2:
            raise UserError(f"{path} has no LabelMap matrix: unpack the archive again")
        return content["LabelMap"]

    def _normals(self, id_: str, labelmap_HW: np.ndarray) -> np.ndarray:
        path = self.root / "normals_distill" / f"{id_}.png"
        rgb_HWC = read_picture(path, "RGB")
        if rgb_HWC.shape[:2] != labelmap_HW.shape:
            raise UserError(f"{path} is {rgb_HWC.shape[:2]} but its LabelMap is {labelmap_HW.shape}; replace that file")
        return codec.mark_invalid_normals(rgb_HWC, np.isin(labelmap_HW, NORMALS_LABELMAP_IDS))

    def _human_parts(self, id_: str, shape_HW: tuple[int, int]) -> np.ndarray:
        path = self.root / "human_parts" / f"{id_}.mat"
        content = _load_mat(path)
        try:
            return merge_person_parts(content["anno"], shape_HW)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no PASCAL-Part annotation of this image ({error}); replace it") from error


LAYOUTS: dict[str, type[Layout]] = {layout.dataset: layout for layout in (NYUDv2, PASCALContext)}


def open_layout(dataset: str | Path, root: str | Path | None = None) -> Layout:
    """The reader of a data set.

    Args:
        dataset: "nyud", "pascal", or a YAML file that describes a data set of one's own (`fgmoe_dist/data/own.py`).
        root: the unpacked archive's own folder (the one that holds `gt_sets` or `ImageSets`). A described data set
            knows its own; another given here takes its place.

    Raises:
        UserError: unknown data set, or `root` is not that archive.
    """
    if Path(dataset).suffix in (".yaml", ".yml"):
        from fgmoe_dist.data.own import OwnLayout  # it builds on this module

        return OwnLayout(dataset, root)
    if dataset not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(f"data set is {str(dataset)!r}: use one of {known}, or a .yaml file that describes your own")
    if root is None:
        raise UserError(f"data set {dataset} needs a root: give --root, the unpacked {LAYOUTS[dataset].folder} folder")
    return LAYOUTS[dataset](root)


def read_id_list(path: str | Path) -> list[str]:
    """Image ids of a text file, one a line.

    Raises:
        UserError: unreadable or empty file, an id twice, or an id with other characters than letters, digits, _ and -.
    """
    path = Path(path)
    try:
        ids = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the id list {path}: {error}") from error
    if not ids:
        raise UserError(f"the id list {path} is empty: put one image id on each line")
    seen: set[str] = set()
    for id_ in ids:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", id_):
            raise UserError(f"the id list {path} has {id_!r}: an id is letters, digits, _ and - (no extension)")
        if id_ in seen:
            raise UserError(f"the id list {path} has {id_} twice: remove one")
        seen.add(id_)
    return ids


def region_boundary(region_HW: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that differ from their right, lower or lower-right neighbour (as SEISM has it)."""
    boundary_HW = np.zeros(region_HW.shape, bool)
    boundary_HW[:, :-1] |= region_HW[:, :-1] != region_HW[:, 1:]
    boundary_HW[:-1] |= region_HW[:-1] != region_HW[1:]
    boundary_HW[:-1, :-1] |= region_HW[:-1, :-1] != region_HW[1:, 1:]
    return boundary_HW


def thin(mask_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: the mask thinned to convergence."""
    from skimage.morphology import thin as skimage_thin  # a second to import, and only builders need it

    return skimage_thin(mask_HW).astype(np.uint8)


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


class named:
    """Turns whatever a reader raises about a file into one line that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        if not self.path.is_file():
            raise UserError(f"{self.path} is missing: unpack the archive again, or take its id off the list")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is 0 bytes long: unpack the archive again, or take its id off the list")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError)):
            raise UserError(f"{self.path} cannot be read ({str(error).splitlines()[0]}); replace that file") from error


def _load_mat(path: Path) -> dict:
    from scipy.io import loadmat

    with named(path):
        try:
            return loadmat(path)
        except (NotImplementedError, TypeError, KeyError) as error:  # a version 7.3 file, or bytes that are no .mat
            raise ValueError(str(error) or type(error).__name__) from error


def read_picture(path: Path, mode: str | None) -> np.ndarray:
    """uint8 pixels of a picture. Without a mode, a palette picture gives its indices, as label maps need."""
    with named(path), Image.open(path) as picture:
        return np.array(picture if mode is None or picture.mode == mode else picture.convert(mode))


def _label_map(path: Path, allowed: range | tuple[int, ...]) -> np.ndarray:
    """uint8 [H, W] label ids as they are in the file, all of them among `allowed`."""
    label_HW = read_picture(path, None)
    if label_HW.ndim != 2 or label_HW.dtype != np.uint8:
        raise UserError(f"{path} is {label_HW.dtype} {label_HW.shape}, not one 8-bit channel; replace that file")
    strange = np.setdiff1d(np.unique(label_HW), np.array(allowed))
    if strange.size:
        raise UserError(f"{path} holds label {strange[0]}, outside {allowed[0]}..{allowed[-1]}; replace that file")
    return label_HW


def _binary(path: Path) -> np.ndarray:
    """uint8 [H, W] of 0 and 1 from a 0..255 picture: x / 255 > 0.5."""
    return (read_picture(path, "L") > 127).astype(np.uint8)
