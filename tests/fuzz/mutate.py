"""Changes to good input. Each takes a `random.Random` and says in words what it did."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ODD = [
    None, True, False, -1, 0, 1, 2, 3, 255, 256, 65535, 65536, 2**31, 2**63, 10**30, -(10**30),
    0.0, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "no", "0", "1e-3", "nan", "a b", "..", "/", "/nowhere/at/all", "../../x", "{id}", "{}", "{0}", "*",
    "[", "\\", "a\nb", "a\0b", "\udcff", "é", "x" * 5000,
    [], {}, [[]], [None], {"": 0}, {"x": {}}, [1, 2, 3], ["a", "a"], {"kind": "x"}, {1: 2}, [0, 255, 255],
]  # fmt: skip


def spoil_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a file with something changed."""
    size = len(data)
    place, length = rng.randrange(size + 1), rng.randrange(1, 64)
    kind = rng.choice(
        ["flip", "flip", "flip", "cut", "cut", "empty", "zeros", "noise", "insert", "remove", "twice", "text"]
    )
    if kind == "flip":
        spoilt = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 4, 32]) if size else 0):
            # Headers decide most, so half of the flips are near the head.
            spoilt[rng.randrange(min(size, 256) if rng.random() < 0.5 else size)] ^= 1 << rng.randrange(8)
        return bytes(spoilt), "flipped bits"
    noise = rng.randbytes(length)
    made = {
        "cut": data[:place],
        "empty": b"",
        "zeros": data[:place] + bytes(length) + data[place + length :],
        "noise": data[:place] + noise + data[place + length :],
        "insert": data[:place] + noise + data[place:],
        "remove": data[:place] + data[place + length :],
        "twice": data + data,
        "text": rng.choice([b"\n", b"null", b"[]", b"{}", b"\xff\xfe\x00", b"<html>404 Not Found</html>", noise]),
    }
    return made[kind], f"{kind} at {place} of {size}"


def spoil_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """Nested mappings and lists with a few entries changed."""
    tree, told = copy.deepcopy(tree), []
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        tree, what = _spoil_once(tree, rng)
        told.append(what)
    return tree, "; ".join(told)


def _spoil_once(tree: Any, rng: random.Random) -> tuple[Any, str]:
    places = list(_places(tree))
    if not places or rng.random() < 0.03:
        odd = copy.deepcopy(rng.choice(ODD))
        return odd, f"all is {_short(odd)}"
    owner, key = rng.choice(places)
    kind = rng.choice(["odd", "odd", "odd", "drop", "move", "rename", "swap", "wrap", "scale", "letter", "deep"])
    told = f"{kind} at {key!r}"
    value = owner[key]
    if kind == "odd":
        owner[key] = copy.deepcopy(rng.choice(ODD))
        told += f": {_short(owner[key])}"
    elif kind == "drop":
        del owner[key]
    elif kind == "move":
        other, where = rng.choice(places)
        owner[key] = copy.deepcopy(other[where]) if where in _keys(other) else None
    elif kind == "rename" and isinstance(owner, dict):
        owner[rng.choice([f"{key}s", str(key)[:-1], str(key).upper(), 0, "", None])] = owner.pop(key)
    elif kind == "swap":
        other, where = rng.choice(places)
        if where in _keys(other):
            owner[key], other[where] = copy.deepcopy(other[where]), value
    elif kind == "wrap":
        owner[key] = rng.choice([[value], {"x": value}, [value, value], str(value)])
    elif kind == "scale" and isinstance(value, (int, float)):
        owner[key] = value * rng.choice([-1, 0, 0.5, 1e9, 1e-9, float("nan")])
    elif kind == "letter" and isinstance(value, str) and value:
        place = rng.randrange(len(value))
        owner[key] = value[:place] + rng.choice(["", "\0", "/", "{", "*", ".", "é", " "]) + value[place + 1 :]
    elif kind == "deep":
        for _ in range(60):
            value = [value]
        owner[key] = value
    return tree, told


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for key in _keys(tree):
        found += [(tree, key), *_places(tree[key])]
    return found


def _keys(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []


def _short(value: Any) -> str:
    return repr(value)[:40]


def spoil_file(path: Path, rng: random.Random) -> str:
    """Changes a file: its bytes, its tree, its array, its picture, or what it is."""
    trees: dict[str, tuple[Callable, Callable]] = {
        ".yaml": (yaml.safe_load, lambda tree: yaml.safe_dump(tree, allow_unicode=True)),
        ".json": (json.loads, json.dumps),
    }
    chance = rng.random()
    if chance < 0.12:
        return f"{path.name}: {_replace(path, rng)}"
    if path.suffix in trees and chance < 0.8:
        load, dump = trees[path.suffix]
        tree, told = spoil_tree(load(path.read_text()), rng)
        try:
            path.write_bytes(dump(tree).encode(errors="surrogatepass"))
            return f"{path.name}: {told}"
        except (yaml.YAMLError, TypeError, ValueError):
            pass  # what this form of file cannot say
    if path.suffix == ".npy" and chance < 0.7:
        return f"{path.name}: {_odd_array(path, rng)}"
    if path.suffix in (".png", ".jpg") and chance < 0.5:
        return f"{path.name}: {_odd_picture(path, rng)}"
    data, told = spoil_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {told}"


def _replace(path: Path, rng: random.Random) -> str:
    kind = rng.choice(["gone", "folder", "loop", "dangling", "another"])
    others = [other for other in sorted(path.parent.parent.rglob("*")) if other.is_file() and other != path]
    data = rng.choice(others).read_bytes() if others else b""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "another":
        path.write_bytes(data)
    return kind


def _odd_array(path: Path, rng: random.Random) -> str:
    """An .npy of another kind, shape or values, or what only looks like one."""
    array = np.load(path)
    made: dict[str, Callable[[], Any]] = {
        "struct": lambda: np.zeros(array.shape, [("a", "f4"), ("b", "i2")]),
        "strings": lambda: array.astype(str),
        "dates": lambda: array.astype("i8").astype("M8[s]"),
        "complex": lambda: array.astype(complex),
        "huge values": lambda: np.full(array.shape, rng.choice([1e300, -1e300, np.inf, np.nan, 1e-300])),
        "integers": lambda: array.astype(rng.choice(["i1", "u1", "i8", "u8", ">i4"])),
        "half": lambda: array.astype("f2"),
        "other order": lambda: np.asfortranarray(array.astype(">f8")),
        "bools": lambda: array > 0,
        "scalar": lambda: np.float64(3),
        "empty": lambda: array[:0],
        "flat": array.ravel,
        "one axis more": lambda: array[None],
        "turned": lambda: np.swapaxes(array, 0, 1),
        "smaller": lambda: array[:-1],
    }
    kind = rng.choice([*made, "pickle", "npz", "vast header"])
    if kind == "pickle":
        np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    elif kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, array)
        path.write_bytes(buffer.getvalue())
    elif kind == "vast header":
        buffer = io.BytesIO()
        shape = rng.choice([(10**9, 10**9), (-1, 4), (2**62, 8), (10**6, 10**6)])
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
        path.write_bytes(buffer.getvalue() + bytes(64))
    else:
        np.save(path, made[kind]())
    return kind


def _odd_picture(path: Path, rng: random.Random) -> str:
    """A picture of another mode, size or format."""
    with Image.open(path) as opened:
        opened.load()
        picture = opened.copy()
    grey = picture.convert("L")
    form = "JPEG" if path.suffix == ".jpg" else "PNG"
    made: dict[str, Callable[[], Any]] = {
        "grey": lambda: grey,
        "alpha": lambda: picture.convert("RGBA"),
        "grey and alpha": lambda: picture.convert("LA"),
        "palette": lambda: picture.convert("RGB").quantize(8),
        "one bit": lambda: grey.point(lambda value: 255 * (value > 0)).convert("1"),
        "16 bits": lambda: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "32 bits": lambda: Image.fromarray(np.asarray(grey).astype(np.int32) * 70000),
        "floats": lambda: Image.fromarray(np.asarray(grey).astype(np.float32) / 7),
        "inks": lambda: picture.convert("CMYK"),
        "wider": lambda: picture.resize((picture.width + 1, picture.height)),
        "one pixel": lambda: picture.resize((1, 1)),
        "turned": lambda: picture.transpose(Image.Transpose.ROTATE_90),
        "vast": lambda: Image.new("1", (14000, 14000)),
    }
    kind = rng.choice(list(made))
    other = rng.choice([form, form, "PNG", "TIFF", "JPEG", "GIF", "BMP"])
    try:
        made[kind]().save(path, other)
    except (OSError, ValueError):  # a form that cannot hold such a picture
        picture.convert("RGB").save(path, "PNG")
    return f"{kind} as {other}"


def one_of(folder: Path, rng: random.Random, *patterns: str) -> Path:
    """A file in a folder."""
    return rng.choice(sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file()))


def spoil_one(*patterns: str) -> Callable[[Path, random.Random], str]:
    """Changes one of the files that fit."""
    return lambda folder, rng: spoil_file(one_of(folder, rng, *patterns), rng)
