"""The heat map of the experts' load: its colours mean what its legend says."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fgmoe_dist.drawing.load_map import FIGURES, STOPS, load_colours, load_map
from fgmoe_dist.drawing.style import HATCH
from fgmoe_dist.experts.balance import LoadFigures

TASKS = ["semseg", "depth"]
BESIDE = [[LoadFigures(1.0, 1.0, 0, 0.0)] * 2] * 2


def colours_in(picture: np.ndarray) -> set[tuple[int, int, int]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def test_half_and_twice_the_load_are_as_far_from_even():
    colours = load_colours(np.array([2.0**-9, 1 / 8, 1 / 2, 1.0, 2.0, 8.0, 2.0**9])).astype(int)
    assert colours[0].tolist() == colours[1].tolist() == list(STOPS[0])
    assert colours[3].tolist() == list(STOPS[4])
    assert colours[5].tolist() == colours[6].tolist() == list(STOPS[8])
    scale = load_colours(2 ** np.linspace(-3, 3, 9))
    assert scale.tolist() == STOPS.tolist()


def test_an_even_load_is_drawn_in_the_colour_of_even_and_a_dead_expert_hatched(tmp_path):
    even = np.full((1, 2, 4), 6.0)
    picture = load_map(even, BESIDE, TASKS, tmp_path / "load.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "load.png")), picture)
    legend = 3 * 30  # pixels at the foot
    assert tuple(STOPS[4].tolist()) in colours_in(picture[:-legend]) and HATCH[0] not in colours_in(picture[:-legend])
    even[0, 1] = [0, 8, 8, 8]
    assert HATCH[0] in colours_in(load_map(even, BESIDE, TASKS)[:-legend])


def test_what_stands_beside_a_row_is_what_is_told_of_a_load():
    assert tuple(FIGURES) == LoadFigures._fields
    busy = [[LoadFigures(0.25, 4.0, 3, 0.5)] * 2]
    load = np.full((1, 2, 4), 6.0)
    assert not np.array_equal(load_map(load, BESIDE, TASKS), load_map(load, busy, TASKS))


def test_any_number_of_experts_fits():
    for experts in (1, 3, 16, 1024):
        picture = load_map(np.ones((2, 2, experts)), BESIDE, TASKS, groups=1)
        assert picture.ndim == 3 and picture.shape[1] >= 4 * experts
    assert load_map(np.zeros((1, 2, 8)), BESIDE, TASKS).dtype == np.uint8  # nobody chose anybody
