"""Plug-ins in a test's own process, for as long as it wants them; ranks and workers that it starts have them too."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from unittest import mock

from fgmoe_dist import plugins
from tests.runs import ROOT

EXAMPLES = ROOT / "examples" / "plugins"


def example(name: str) -> str:
    """The plug-in as `--plugin` names it."""
    return str(EXAMPLES / f"{name}.py")


@contextlib.contextmanager
def plugged(*names: str) -> Iterator[None]:
    """With some of the examples loaded; everything is forgotten afterwards."""
    entries = {seam: dict(plugins._dictionary(seam)) for seam in plugins.SEAMS}
    modules, path = dict(sys.modules), list(sys.path)
    with mock.patch.dict(os.environ), mock.patch.dict(plugins._loaded), mock.patch.object(sys, "path", [*path]):
        try:
            plugins.load(*map(example, names))
            yield
        finally:
            plugins._restore(entries)
            for folder in set(sys.path) - set(path):
                for name, module in list(sys.modules.items()):
                    if name not in modules and os.path.dirname(getattr(module, "__file__", None) or "") == folder:
                        del sys.modules[name]
