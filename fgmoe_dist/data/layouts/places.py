"""Where the files of an image lie: patterns of paths such as `gtFine/*/*/{id}_labelIds.png`.

A field, `{id}` or any other name, stands for a part of a path, a star for what is of no account; neither goes beyond a
folder's name. Where the path follows from the id, as in `semseg/{id}.png`, it is made from it. Else the folders of the
pattern are listed, once, and the id of a file is made of the fields that its path holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fgmoe_dist.errors import UserError

ID = "{id}"
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_WILD = re.compile(r"(\{[a-z][a-z0-9_]*\}|\*)")


def fields(pattern: str) -> set[str]:
    """The names of a pattern's fields."""
    return set(_FIELD.findall(pattern))


class Places:
    """The files below a folder, by the id of the image that they belong to.

    Args:
        root: the data set's folder.
        identity: how an id is made of the fields of a pattern.
    """

    def __init__(self, root: Path, identity: str = ID):
        self.root, self.identity = root, identity
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, patterns: Iterable[str], id_: str) -> Path | None:
        """The file of an image by the first of some patterns that has one, or None."""
        return next((path for path in self.all(patterns, id_) if path.is_file()), None)

    def all(self, patterns: Iterable[str], id_: str) -> list[Path]:
        """Every place where some patterns have, or may have, the file of an image."""
        return [self.root / path for pattern in patterns if (path := self._path(pattern, id_))]

    def expected(self, pattern: str, id_: str) -> Path:
        """Where a pattern's file of an image should lie; what does not follow from the id is left as it is."""
        return self.root / (self._path(pattern, id_) or pattern.replace(ID, id_))

    def below(self, patterns: Iterable[str], where: str) -> list[str]:
        """The ids of the files of some patterns in a folder, or whose path a pattern with stars matches.

        They are in the order of their paths, numbers by their value.
        """
        wanted = _glob(where) if "*" in where else re.compile(re.escape("/".join(Path(where).parts)) + "/.*")
        if where in (".", "./"):
            wanted = re.compile(".*")
        paths: dict[str, str] = {}
        for pattern in patterns:
            for id_, path in self.listed(pattern).items():
                if wanted.fullmatch(path):
                    paths.setdefault(id_, path)
        return sorted(paths, key=lambda id_: _natural(paths[id_]))

    def listed(self, pattern: str) -> dict[str, str]:
        """By id, the path below the root of every file there is of a pattern.

        Raises:
            UserError: two files have one id.
        """
        if pattern not in self._listed:
            found: dict[str, str] = {}
            regex = _regex("/".join(Path(pattern).parts))
            for path in _walk(self.root, Path(pattern).parts):
                if match := regex.fullmatch(path):
                    id_ = self.identity.format(**match.groupdict())
                    if id_ in found:
                        raise UserError(
                            f"{self.root}: {found[id_]} and {path} are both {pattern} of image {id_}: "
                            "write a pattern that only one of them fits"
                        )
                    found[id_] = path
            self._listed[pattern] = found
        return self._listed[pattern]

    def _path(self, pattern: str, id_: str) -> str:
        """The path of a pattern's file, which need not be there if it follows from the id; empty if it is not."""
        if self.identity == ID and "*" not in pattern:
            return pattern.replace(ID, id_)
        return self.listed(pattern).get(id_, "")


def _walk(root: Path, parts: tuple[str, ...]) -> Iterator[str]:
    """The paths of the files whose folders and names fit the parts of a pattern, each by itself."""

    def below(folder: Path, names: tuple[str, ...]) -> Iterator[str]:
        part, last = parts[len(names)], len(names) == len(parts) - 1
        for name in _fitting(folder, part):
            path = folder / name
            if last and path.is_file():
                yield "/".join((*names, name))
            elif not last and path.is_dir():
                yield from below(path, (*names, name))

    return below(root, ())


def _fitting(folder: Path, part: str) -> list[str]:
    """The names in a folder that fit a part of a pattern; hidden ones never do unless they are written out."""
    if not _WILD.search(part):
        return [part]
    regex = _regex(part)
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".") and regex.fullmatch(name)]
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}): check its permissions") from error


def _regex(pattern: str) -> re.Pattern[str]:
    """A field that comes again must hold the same."""
    seen: set[str] = set()

    def one(token: str) -> str:
        if token == "*":
            return "[^/]*"
        if not _FIELD.fullmatch(token):
            return re.escape(token)
        name = token[1:-1]
        text = f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
        seen.add(name)
        return text

    return re.compile("".join(map(one, _WILD.split(pattern))))


def _glob(pattern: str) -> re.Pattern[str]:
    tokens = {"**": ".*", "*": "[^/]*"}
    return re.compile("".join(tokens.get(token, re.escape(token)) for token in re.split(r"(\*\*?)", pattern)))


def _natural(path: str) -> list[tuple[int, int, str]]:
    """A key that puts 2 before 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path)]
