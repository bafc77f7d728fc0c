"""Region boundaries, by hand and against a loop."""

import numpy as np

from fgmoe_dist.metrics.boundary.regions import region_boundary


def test_a_boundary_by_hand():
    region = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert region_boundary(region).tolist() == [[False, True, False], [True, True, True], [False, False, False]]


def test_against_a_loop():
    region_HW = np.random.default_rng(0).integers(0, 3, (7, 9))
    truth_HW = np.zeros((7, 9), bool)
    for y in range(7):
        for x in range(9):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < 7 and x + dx < 9:
                    truth_HW[y, x] |= region_HW[y, x] != region_HW[y + dy, x + dx]
    np.testing.assert_array_equal(region_boundary(region_HW), truth_HW)
