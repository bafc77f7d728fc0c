"""Plug-ins: modules of one's own that add to the package's dictionaries, so that the package itself stays as it is.

A plug-in puts its things into the dictionaries that `SEAMS` lists (docs/extending.md), at its top level or in a
function `register()`. A run is told of it in one of three ways:

    --plugin MODULE    of every verb, repeatable: a module, also one of the current folder, or the path of a .py file
    FGMOE_PLUGINS      the same, with commas between them; `--plugin` adds to it, so that child processes see it too
    an entry point     in the group `fgmoe_dist.plugins` of an installed distribution: a module, or a function to call

Nothing else loads code: what a configuration, a checkpoint or an index of shards names has to be there already.

This module lies below everything that plug-ins add to. It imports that by name, and only where there is a plug-in.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from fgmoe_dist.errors import UserError, first_line

GROUP, VARIABLE, OPTION = "fgmoe_dist.plugins", "FGMOE_PLUGINS", "--plugin"
HINT = f"; what a plug-in adds is known with {OPTION}"  # ends a message on a name that nobody knows

# The dictionaries that plug-ins add to, by what they hold.
SEAMS = {
    "task": ("fgmoe_dist.tasks.registry", "TASKS"),
    "task of a kind of label": ("fgmoe_dist.tasks.registry", "KINDS"),
    "kind of label": ("fgmoe_dist.labels", "KINDS"),
    "section of a data set": ("fgmoe_dist.data.layouts.sections", "SECTIONS"),
    "data set": ("fgmoe_dist.data.layouts", "LAYOUTS"),
    "decoder": ("fgmoe_dist.decoders", "DECODERS"),
    "kind of expert": ("fgmoe_dist.experts.kinds", "KINDS"),
    "router": ("fgmoe_dist.experts.routers", "ROUTERS"),
    "balance loss": ("fgmoe_dist.experts.balance", "BALANCE"),
    "kernel": ("fgmoe_dist.experts.kernels", "KERNELS"),
    "backend": ("fgmoe_dist.experts.backends", "BACKENDS"),
    "weighting method": ("fgmoe_dist.training.weighting", "WEIGHTING"),
    "engine": ("fgmoe_dist.training.engines", "ENGINES"),
    "sink": ("fgmoe_dist.tracking.sinks", "SINKS"),
}


@dataclass(frozen=True)
class Plugin:
    """A plug-in that has been loaded."""

    name: str
    version: str
    adds: tuple[str, ...]  # as in "decoder linear"

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


# By where it is: a module, a file, or MODULE:FUNCTION.
_loaded: dict[str, Plugin] = {}


def take(arguments: Sequence[str]) -> list[str]:
    """Loads the plug-ins that a command line names, and those of `load`. Returns the other arguments.

    Raises:
        UserError: as `load`; an option without a value.
    """
    named, others = [], []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != OPTION:
            others.append(word)
        elif value := value if equals else next(words, ""):
            named.append(value)
        else:
            raise UserError(f"{OPTION}: names nothing; give a module or the path of a .py file")
    load(*named)
    return others


def load(*names: str) -> None:
    """Loads these plug-ins, behind those that are installed and those of the environment; none of them twice.

    Raises:
        UserError: one cannot be found or imported, or takes a name that something else has.
    """
    named = [_whole(name) for name in (*os.environ.get(VARIABLE, "").split(","), *names) if name.strip()]
    for where, version in [*_installed(), *((name, "") for name in named)]:
        if where not in _loaded:
            _loaded[where] = _looked_after(where, version)
    if named:
        os.environ[VARIABLE] = ",".join(dict.fromkeys(named))


def loaded() -> list[Plugin]:
    """The plug-ins that are loaded, in that order."""
    return list(_loaded.values())


def notes() -> list[str]:
    """Lines for a run's log."""
    return [f"plug-in {plugin}: {', '.join(plugin.adds) or 'adds nothing'}" for plugin in loaded()]


class Plugged:
    """In a pickle, before all that may be of a plug-in: where it is read, the sender's plug-ins are loaded first.

    Processes that are started afresh get their work so. What they unpickle imports the modules of its classes by
    itself, but knows nothing of what the others have put into dictionaries.
    """

    def __reduce__(self) -> tuple:
        return _load_as_sender, (tuple(_loaded.items()),)


def _load_as_sender(plugins: Sequence[tuple[str, Plugin]]) -> Plugged:
    for where, plugin in plugins:
        if where not in _loaded:
            _run(where)
            _loaded[where] = plugin
    return Plugged()


def _installed() -> Iterator[tuple[str, str]]:
    """Where each installed plug-in is, and its version."""
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        yield entry.value, entry.dist.version if entry.dist else ""


def _whole(name: str) -> str:
    """A file by its whole path, which a child process finds in any folder."""
    name = name.strip()
    if "," in name:
        raise UserError(
            f"{OPTION} {name}: a comma stands between plug-ins in {VARIABLE}; rename it, or give each alone"
        )
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _looked_after(where: str, version: str) -> Plugin:
    """Loads a plug-in and looks at what it did to the dictionaries."""
    before = {seam: dict(_dictionary(seam)) for seam in SEAMS}
    module = _run(where)
    after = {seam: dict(_dictionary(seam)) for seam in SEAMS}
    for seam, entries in before.items():
        for name, entry in entries.items():
            if after[seam].get(name) is not entry:
                _restore(before)
                raise UserError(f"plug-in {where}: there is a {seam} {_word(name)} already; give its own another name")
    adds = [f"{seam} {_word(name)}" for seam in SEAMS for name in after[seam] if name not in before[seam]]
    return Plugin(Path(where).stem if _is_file(where) else where, version or _version(module), tuple(adds))


def _dictionary(seam: str) -> dict[Any, Any]:
    module, name = SEAMS[seam]
    return getattr(importlib.import_module(module), name)


def _restore(entries: dict[str, dict[Any, Any]]) -> None:
    for seam, former in entries.items():
        now = _dictionary(seam)
        now.clear()
        now.update(former)


def _word(name: Any) -> str:
    return " ".join(name) if isinstance(name, tuple) else str(name)


def _run(where: str) -> ModuleType:
    """Imports the module, and calls what registers its things."""
    name, _, attribute = where.partition(":")
    try:
        module = _import_file(Path(name)) if _is_file(name) else _import_module(name)
        register = module
        for part in attribute.split(".") if attribute else ():
            register = getattr(register, part)
        if isinstance(register, ModuleType):
            register = getattr(register, "register", lambda: None)
        register()
        return module
    except (Exception, SystemExit) as error:
        raise UserError(f"plug-in {where}: cannot be loaded: {_reason(error)}") from error


def _is_file(where: str) -> bool:
    return where.endswith(".py")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError("there is no such file")
    module = _import_module(path.stem, path.parent)
    found = getattr(module, "__file__", None)
    if found is None or not path.samefile(found):
        raise UserError(f"another module has its name ({found or 'a part of Python'}); rename the file")
    return module


def _import_module(name: str, folder: Path = Path()) -> ModuleType:
    # Last: a file that has the name of an installed module must not take its place.
    if (folder := str(folder.resolve())) not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def _reason(error: BaseException) -> str:
    """What went wrong in a plug-in and, if it is no message to users, where."""
    if isinstance(error, UserError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, ModuleNotFoundError) else f" ({last.filename}, line {last.lineno})"
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _version(module: ModuleType) -> str:
    """What the module says of itself, or its distribution, or what tells a file's contents from others."""
    if said := getattr(module, "__version__", ""):
        return str(said)
    for name in metadata.packages_distributions().get(module.__name__.partition(".")[0], ()):
        return metadata.version(name)
    return f"sha256:{hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:12]}" if module.__file__ else ""
