"""Cures for what other packages get wrong together; call them before the import they cure.

PyPI's torchvision wheel is built against CUDA torch. Beside a CPU-only torch its compiled operators cannot
load, and its import then dies registering fakes for operators that nobody declared ("operator
torchvision::nms does not exist"). timm imports torchvision but needs none of these operators, so declaring
their schemas is enough. With any other torch nothing is declared: there the error would be a true one.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

# The operators that torchvision registers a fake for whether or not its library has loaded.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library that is collected takes its schemas with it


def prepare_torchvision() -> bool:
    """Make `import torchvision` work beside a CPU-only torch; safe to call at any time, any number of times.

    Returns:
        Whether schemas stand declared by this function, that is whether torchvision runs without its operators.
    """
    if _declared or "torchvision" in sys.modules or not _is_cpu_build() or _operators_load():
        return bool(_declared)
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        library.define(schema)
    _declared.append(library)
    return True


def import_timm() -> ModuleType:
    """timm, imported after `prepare_torchvision`."""
    prepare_torchvision()
    return importlib.import_module("timm")


def _is_cpu_build() -> bool:
    return torch.version.cuda is None and getattr(torch.version, "hip", None) is None


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load; True too where torchvision is absent, as nothing is to cure."""
    spec = importlib.util.find_spec("torchvision")  # finds a top-level package without importing it
    if spec is None or spec.origin is None:
        return True
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    libraries = [Path(spec.origin).parent / f"_C{suffix}" for suffix in suffixes]
    for library in filter(Path.is_file, libraries):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
        return True
    return False
