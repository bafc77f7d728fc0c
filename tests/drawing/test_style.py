import numpy as np
import pytest

from fgmoe_dist.drawing.style import HATCH, few_round_values, hatch, round_values


def test_round_values():
    assert round_values(0, 100) == [0, 20, 40, 60, 80, 100]
    assert round_values(0, 0.37) == [0, 0.1, 0.2, 0.3]
    assert round_values(-0.5, 11) == [0, 5, 10]


def test_few_round_values_are_round_and_inside():
    assert few_round_values(0.7, 4.2) == [1, 2, 3, 4]
    assert few_round_values(1.0, 80.0) == [20, 40, 60, 80]
    assert few_round_values(2.0, 2.0) == [2.0]
    assert few_round_values(-3e-4, 3e-4) == [-0.0002, 0, 0.0002]
    assert few_round_values(900, 4100) == [1000, 2000, 3000, 4000]


@pytest.mark.parametrize(
    "low, high, expected", [(0.98, 1.05, [0.98, 1, 1.02, 1.04]), (1, 1.013, [1]), (0.5, 0.5, [0.5])]
)
def test_few_round_values_are_no_finer_than_asked(low, high, expected):
    assert few_round_values(low, high, finest=0.01) == pytest.approx(expected)


def test_stripes_are_diagonal_and_go_on_from_where_they_are_told():
    whole = hatch(20, 30)
    dark = (whole == HATCH[0]).all(-1)
    assert whole.dtype == np.uint8 and dark[0, :12].tolist() == [True] * 4 + [False] * 6 + [True] * 2
    assert (dark[1:, :-1] == dark[:-1, 1:]).all() and (whole[~dark] == HATCH[1]).all()
    assert (hatch(20, 20, start=10) == hatch(20, 20)).all() and (hatch(17, 27, start=6) == whole[3:, 3:]).all()
