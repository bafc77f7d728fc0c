"""Writes rooms into the very folders and encodings of the NYUDv2 and PASCALContext archives.

Every image depends on (layout, size, seed, split, index) only, so neither the number of workers nor an interruption
changes a byte. Each file is written beside its place and renamed; an image counts as done when its last file is there.

Shapes: H x W pixels.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import PARTIAL, to_json, write_atomically
from fgmoe_dist.metrics.boundary.regions import region_boundary
from fgmoe_dist.outputs import ROOMS, claim
from fgmoe_dist.progress import track
from fgmoe_dist.rooms.camera import choose
from fgmoe_dist.rooms.labels import KINDS
from fgmoe_dist.rooms.programs import furnish
from fgmoe_dist.rooms.render import Renderer, View
from fgmoe_dist.rooms.scene import Scene
from fgmoe_dist.rooms.streams import SPLITS, stream

LAYOUTS = ("nyud", "pascal")
_MANIFEST = "rooms.json"
_GENERATOR = 1  # raise it when the same seed no longer gives the same bytes


@dataclass(frozen=True)
class _Set:
    """What decides the bytes of a data set."""

    layout: str
    train: int
    val: int
    seed: int
    size: tuple[int, int]
    generator: int = _GENERATOR


def write_rooms(
    layout: str,
    out: Path | str,
    train: int,
    val: int,
    seed: int,
    size: tuple[int, int] = (256, 336),
    workers: int | None = None,
) -> None:
    """Render a data set of rooms into `out`, in the folder layout of an archive.

    Args:
        layout: "nyud" (NYUDv2: semseg, depth, normals, edge) or "pascal" (PASCALContext: semseg, human_parts, sal,
            normals, edge).
        out: the layout's root; made where missing. A set that was begun with the same arguments is finished.
        train, val: how many images.
        seed: any non-negative integer.
        size: (height, width) in pixels.
        workers: processes; all cores that this process may use when None.

    Raises:
        UserError: impossible arguments, or `out` holds something else.
    """
    wanted = _Set(layout, train, val, seed, tuple(size))
    _check(wanted)
    root = Path(out)
    _claim(root, wanted)
    todo = [(split, index) for split in SPLITS for index in range(getattr(wanted, split))]
    todo = [item for item in todo if not _last_file(root, layout, image_id(*item)).exists()]
    for _ in track(_results(root, wanted, todo, workers), f"rendering {layout} rooms", len(todo)):
        pass
    for split in SPLITS:
        lines = [image_id(split, index) + "\n" for index in range(getattr(wanted, split))]
        write_atomically(root / _LISTS[layout] / f"{split}.txt", "".join(lines).encode())


def image_id(split: str, index: int) -> str:
    """The name of an image: the archives' readers take any without dot or slash."""
    return f"{split}_{index:05d}"


def _check(wanted: _Set) -> None:
    if wanted.layout not in LAYOUTS:
        raise UserError(f"layout is {wanted.layout!r}; choose one of {', '.join(LAYOUTS)}")
    for name in ("train", "val", "seed"):
        if getattr(wanted, name) < 0:
            raise UserError(f"{name} is {getattr(wanted, name)}; give 0 or more")
    if len(wanted.size) != 2 or min(wanted.size) < 32:
        raise UserError(f"size is {'x'.join(map(str, wanted.size))}; give HEIGHTxWIDTH of at least 32 pixels each")


def _claim(root: Path, wanted: _Set) -> None:
    """Make sure that `root` is empty or holds the beginning of this very set, and say so in its manifest."""
    manifest, content = root / _MANIFEST, to_json(asdict(wanted), indent=1).encode() + b"\n"
    if manifest.exists():
        if manifest.read_bytes() == content:
            for leftover in root.rglob(f".*{PARTIAL}"):  # of a run that was killed
                leftover.unlink()
        else:
            raise UserError(
                f"{root} holds other rooms ({_difference(manifest, wanted)}): give another --out or delete it"
            )
    claim(root, "--out", ROOMS, mark=False)
    write_atomically(manifest, content)


def _difference(manifest: Path, wanted: _Set) -> str:
    try:
        found = json.loads(manifest.read_bytes())
    except ValueError:
        return f"{_MANIFEST} is damaged"
    pairs = json.loads(to_json(asdict(wanted))).items()
    return ", ".join(f"{key} {found.get(key)!r}, not {value!r}" for key, value in pairs if found.get(key) != value)


def _results(root: Path, wanted: _Set, todo: list[tuple[str, int]], workers: int) -> Iterator[None]:
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers <= 1 or len(todo) <= 1:
        yield from (_render_and_write(root, wanted, *item) for item in todo)
        return
    # Fresh processes: Embree's threads and torch's do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_render_and_write, root, wanted, *item) for item in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _render_and_write(root: Path, wanted: _Set, split: str, index: int) -> None:
    scene, view, image_HW3 = render(wanted.layout, wanted.seed, split, index, wanted.size)
    files = _FILES[wanted.layout](image_id(split, index), scene, view, image_HW3)
    for path, content in files.items():
        write_atomically(root / path, content)


def render(layout: str, seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[Scene, View, np.ndarray]:
    """One image of a data set: its scene, exact labels, and the photograph, uint8 `[H, W, 3]`."""
    scene = furnish(layout, seed, split, index)
    renderer = Renderer(scene)
    camera = choose(scene, renderer.tracer, stream(seed, split, index, "camera"), layout)
    view, surface = renderer.view(camera, size)
    return scene, view, renderer.photograph(camera, view, surface, stream(seed, split, index, "film"))


# ---------------------------------------------------------------------------------------------------------- layouts

_LISTS = {"nyud": "gt_sets", "pascal": "ImageSets/Context"}


def _last_file(root: Path, layout: str, name: str) -> Path:
    return root / {"nyud": f"images/{name}.png", "pascal": f"JPEGImages/{name}.jpg"}[layout]


def _nyud_files(name: str, scene: Scene, view: View, image_HW3: np.ndarray) -> dict[str, bytes]:
    """The image comes last: `_last_file`."""
    ids = np.array([KINDS[kind].nyu for kind in scene.kinds], np.uint8)
    return {
        f"segmentation/{name}.png": _png(ids[view.thing_HW]),
        f"depth/{name}.npy": _npy(view.depth_HW),
        f"normals/{name}.png": _png(_normal_bytes(view.normal_HW3)),
        f"edge/{name}.png": _png(region_boundary(view.thing_HW).astype(np.uint8) * 255),
        f"images/{name}.png": _png(image_HW3),
    }


def _pascal_files(name: str, scene: Scene, view: View, image_HW3: np.ndarray) -> dict[str, bytes]:
    voc = np.array([KINDS[kind].voc for kind in scene.kinds], np.uint8)
    context = np.array([KINDS[kind].context for kind in scene.kinds], np.uint16)
    semseg_HW = voc[view.thing_HW]
    # VOC leaves a line between objects and what surrounds them undecided.
    semseg_HW[region_boundary(np.where(semseg_HW > 0, view.thing_HW + 1, 0))] = 255
    return {
        f"semseg/VOC12/{name}.png": _png(semseg_HW),
        f"pascal-context/trainval/{name}.mat": _mat({"LabelMap": context[view.thing_HW]}),
        f"human_parts/{name}.mat": _mat({"anno": _part_annotation(name, scene, view)}),
        f"normals_distill/{name}.png": _png(_normal_bytes(view.normal_HW3)),
        f"sal_distill/{name}.png": _png(salient(scene, view).astype(np.uint8) * 255),
        f"JPEGImages/{name}.jpg": _jpeg(image_HW3),
    }


_FILES = {"nyud": _nyud_files, "pascal": _pascal_files}


def salient(scene: Scene, view: View) -> np.ndarray:
    """What a viewer looks at: people, and the largest other VOC object, weighted towards the middle. bool `[H, W]`"""
    height, width = view.thing_HW.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    weight = np.bincount(view.thing_HW.ravel(), np.exp(-1.5 * (x * x + y * y)).ravel(), len(scene.kinds))
    person = np.array([kind == "person" for kind in scene.kinds])
    objects = np.array([KINDS[kind].voc > 0 for kind in scene.kinds]) & ~person
    chosen = person.copy()
    if (weight * objects).any():
        chosen[np.argmax(weight * objects)] = True
    elif not (weight * person).any():
        structure = np.isin(scene.kinds, ("wall", "floor", "ceiling"))
        chosen[np.argmax(weight * ~structure)] = True
    return chosen[view.thing_HW]


def _part_annotation(name: str, scene: Scene, view: View) -> np.ndarray:
    """PASCAL-Part's struct: `anno` = (imname, objects), an object = (class, class_ind, mask, parts).

    Objects without parts have the empty parts that the archive gives them.
    """
    rows = []
    for thing in np.unique(view.thing_HW):
        kind = scene.kinds[thing]
        if KINDS[kind].voc:
            mask_HW = view.thing_HW == thing
            found = [part for part in np.unique(view.part_HW[mask_HW]) if part]
            parts = [(scene.parts[part], (mask_HW & (view.part_HW == part)).astype(np.uint8)) for part in found]
            table = _struct(parts, ("part_name", "mask")) if parts else np.zeros((0, 0))
            rows.append((kind, np.array([[KINDS[kind].voc]], np.uint8), mask_HW.astype(np.uint8), table))
    return _struct([(name, _struct(rows, ("class", "class_ind", "mask", "parts")))], ("imname", "objects"))


def _struct(rows: list[tuple], names: tuple[str, ...]) -> np.ndarray:
    """A MATLAB struct array `[1, len(rows)]`."""
    array = np.empty((1, len(rows)), [(name, object) for name in names])
    for i, row in enumerate(rows):
        array[0, i] = row
    return array


# ---------------------------------------------------------------------------------------------------------- bytes


def _normal_bytes(normal_HW3: np.ndarray) -> np.ndarray:
    return np.rint((normal_HW3 + 1) * 127.5).astype(np.uint8)


def _png(array: np.ndarray) -> bytes:
    stream_ = io.BytesIO()
    Image.fromarray(array).save(stream_, "PNG", compress_level=2)
    return stream_.getvalue()


def _jpeg(array: np.ndarray) -> bytes:
    stream_ = io.BytesIO()
    Image.fromarray(array).save(stream_, "JPEG", quality=92)
    return stream_.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream_ = io.BytesIO()
    np.save(stream_, array, allow_pickle=False)
    return stream_.getvalue()


def _mat(variables: dict[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file of one variable.

    SciPy's own compression is as slow as the rendering of the masks, so the variable is compressed here, lightly. The
    first 116 bytes are free text, in which SciPy writes the time of day.
    """
    from scipy.io import savemat

    assert len(variables) == 1
    stream_ = io.BytesIO()
    savemat(stream_, variables)
    header, variable = stream_.getvalue()[116:128], zlib.compress(stream_.getvalue()[128:], 1)
    tag = struct.pack("=II", 15, len(variable))  # miCOMPRESSED, in the byte order that the header declares
    return b"MATLAB 5.0 MAT-file, written by fgmoe rooms".ljust(116) + header + tag + variable
