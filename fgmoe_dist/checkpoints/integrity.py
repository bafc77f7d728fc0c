"""Whether a checkpoint still is what was written: the SHA-256 of each of its files, and of what it says of itself.

A disk, a network or a copy may change a byte, and no reader of tensors would know: the weights would only be others.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Iterable, Mapping

from fgmoe_dist.files import to_json

SEAL = "checksum"  # the key in `state.json` of that of all the other keys
_PART = 2**22


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_PART):
            found.update(part)
    return found.hexdigest()


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """That of each of the files `names` in `folder`."""
    return {name: file_checksum(folder / name) for name in names}


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file is to say, with the checksum of it under `SEAL`."""
    return {**values, SEAL: _seal(values)}


def is_as_sealed(values: Mapping[str, Any]) -> bool:
    """Whether it says what `sealed` gave. What has no checksum is from before there were any, and is taken as it is."""
    return SEAL not in values or values[SEAL] == _seal(values)


def _seal(values: Mapping[str, Any]) -> str:
    """Of the values alone: neither the order of keys nor blanks matter."""
    told = to_json({key: value for key, value in values.items() if key != SEAL}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def damaged_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """One clause for each file that is not there, cannot be read or is not what it was, by `expected` checksums."""
    found = []
    for name, checksum in sorted(expected.items()):
        try:
            if file_checksum(folder / name) != checksum:
                found.append(f"{name}: is damaged (its checksum is not that of what was written)")
        except FileNotFoundError:
            found.append(f"{name}: is missing")
        except OSError as error:
            found.append(f"{name}: cannot be read ({error.strerror})")
    return found
