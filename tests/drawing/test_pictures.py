import numpy as np
import pytest
from skimage.color import rgb2lab

from fgmoe_dist.drawing import pictures

VOC = ["background", "aeroplane", "bicycle"]


def is_grey(rgb):
    return (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all()


def test_palette_is_distinct_and_grows_at_its_end():
    colours = pictures.palette(41)
    lab = rgb2lab(colours[None] / 255)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(41, 1)]
    assert distance.min() > 15  # 2.3 is just noticeable
    assert (pictures.palette(7) == colours[:7]).all()
    assert pictures.palette(0).shape == (0, 3)


def test_classes_keep_their_colour_and_ignore_is_hatched():
    colours = pictures.class_colours(VOC)
    picture = pictures.picture_classes(np.array([[0, 1], [2, 255]], np.uint8), VOC)
    assert picture.dtype == np.uint8 and picture.shape == (2, 2, 3)
    assert (picture[0, 0] == colours[0]).all() and (picture[0, 1] == colours[1]).all()
    assert is_grey(picture[1, 1]) and tuple(colours[0]) == pictures.BACKGROUND_RGB


def test_depth_goes_from_bright_to_dark():
    depth = np.array([[1.0, 2.0, 3.0, 0.0, np.nan]], np.float32)
    picture = pictures.picture_values(depth, depth > 0, 1.0, 3.0)
    lightness = rgb2lab(picture)[0, :, 0]
    assert lightness[0] > lightness[1] > lightness[2]
    assert (picture[0, 0] == pictures.depth_scale()[0]).all() and (picture[0, 2] == pictures.depth_scale()[255]).all()
    assert is_grey(picture[:, 3:])


def test_depth_scale_is_perceptually_even():
    lightness = rgb2lab(pictures.depth_scale()[None])[0, :, 0]
    steps = np.diff(lightness[::15])
    assert (steps < 0).all() and steps.min() / steps.max() < 4


def test_a_range_of_values_is_shared_and_robust():
    near, far = np.full((100, 100), 1.0), np.full((100, 100), 4.0)
    far[0, 0] = 1000.0
    assert pictures.value_range([near, far]) == (1.0, 4.0)
    assert pictures.value_range([np.zeros(0)]) == (0.0, 1.0)


def test_constant_depth_is_drawn():
    depth = np.full((4, 5), 2.0)
    assert pictures.picture_values(depth, depth > 0, *pictures.value_range([depth])).shape == (4, 5, 3)


def test_normals_are_drawn_as_the_field_does():
    normals = np.array([[[1, 0, 0], [0, -1, 0], [0, 0, -1], [np.nan] * 3]], np.float32)
    picture = pictures.picture_normals(normals)
    assert picture[0, :3].tolist() == [[255, 128, 128], [128, 0, 128], [128, 128, 0]]
    assert is_grey(picture[0, 3])


def test_probabilities():
    probability = np.array([[0, 128, 255]], np.uint8)
    assert pictures.picture_saliency(probability)[0, :, 0].tolist() == [0, 128, 255]
    assert pictures.picture_edge(probability)[0, :, 0].tolist() == [255, 127, 0]
    hatched = pictures.picture_edge(probability, np.array([[True, False, False]]))
    assert hatched[0, 0, 0] in (196, 226) and hatched[0, 1, 0] == 127


@pytest.mark.parametrize("draw", [pictures.picture_saliency, pictures.picture_edge])
def test_drawing_leaves_its_input_alone(draw):
    probability = np.full((3, 3), 7, np.uint8)
    draw(probability, np.eye(3, dtype=bool))
    assert (probability == 7).all()
