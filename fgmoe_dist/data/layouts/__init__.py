"""Readers of data sets as they lie on disk.

A data set of one's own is a YAML file (`own.py`) and needs no code here. An archive that needs some is a file with a
subclass of `Layout`, and a line in `LAYOUTS`.
"""

from __future__ import annotations

from pathlib import Path

from fgmoe_dist.data.layouts.base import Layout, read_id_list
from fgmoe_dist.data.layouts.nyud import NYUDv2
from fgmoe_dist.data.layouts.own import OwnLayout
from fgmoe_dist.data.layouts.pascal import PASCALContext
from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import HINT

__all__ = ["LAYOUTS", "Layout", "open_layout", "read_id_list"]

LAYOUTS: dict[str, type[Layout]] = {"nyud": NYUDv2, "pascal": PASCALContext}


def open_layout(dataset: str | Path, root: str | Path | None = None) -> Layout:
    """The reader of a data set.

    Args:
        dataset: "nyud", "pascal", or a YAML file that describes a data set of one's own (`own.py`).
        root: the unpacked archive's own folder (the one that holds `gt_sets` or `ImageSets`). A described data set
            knows its own; another given here takes its place.

    Raises:
        UserError: unknown data set, or `root` is not that archive.
    """
    if Path(dataset).suffix in (".yaml", ".yml"):
        return OwnLayout(dataset, root)
    if dataset not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(
            f"data set is {str(dataset)!r}: use one of {known}, or a .yaml file that describes your own{HINT}"
        )
    if root is None:
        raise UserError(f"data set {dataset} needs a root: give --root, the unpacked {LAYOUTS[dataset].folder} folder")
    return LAYOUTS[dataset](root)
