"""Where the regions of a map meet."""

from __future__ import annotations

import numpy as np


def region_boundary(region_HW: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that differ from their right, lower or lower-right neighbour (as SEISM has it)."""
    boundary_HW = np.zeros(region_HW.shape, bool)
    boundary_HW[:, :-1] |= region_HW[:, :-1] != region_HW[:, 1:]
    boundary_HW[:-1] |= region_HW[:-1] != region_HW[1:]
    boundary_HW[:-1, :-1] |= region_HW[:-1, :-1] != region_HW[1:, 1:]
    return boundary_HW
