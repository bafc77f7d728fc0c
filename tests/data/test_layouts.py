"""The archives' labels, against values worked out by hand and the naive rule of the public code."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from fgmoe_dist.data.layouts import open_layout, read_id_list
from fgmoe_dist.data.layouts.base import thin
from fgmoe_dist.data.layouts.nyud import NYU_40
from fgmoe_dist.data.layouts.pascal import NORMALS_LABELMAP_IDS, PARTS_7, PERSON, VOC_21, merge_person_parts
from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.boundary.regions import region_boundary
from tests.archives import obj, save, save_parts, write_nyud, write_pascal

ID = "2008_000001"


@pytest.fixture
def nyud(tmp_path):
    return write_nyud(tmp_path / "NYUDv2")


@pytest.fixture
def pascal(tmp_path):
    return write_pascal(tmp_path / "PASCALContext")


def test_the_class_lists_have_the_fields_lengths():
    assert (len(NYU_40), len(VOC_21), len(PARTS_7)) == (40, 21, 7)
    assert VOC_21[PERSON] == "person" and NYU_40[39] == "otherprop"
    assert len(NORMALS_LABELMAP_IDS) == len(set(NORMALS_LABELMAP_IDS.tolist()))


def test_nyud_semseg_shifts_by_one_and_ignores_unlabelled(nyud):
    label_HW = np.zeros((12, 16))
    label_HW[0, :3] = [0, 1, 40]
    save(nyud / "segmentation" / "0001.png", label_HW)
    semseg_HW = open_layout("nyud", nyud).read("0001")["semseg"]
    assert semseg_HW.dtype == np.uint8
    assert semseg_HW[0, :3].tolist() == [255, 0, 39]


def test_nyud_depth_is_float32_metres_with_zero_for_what_is_none(nyud):
    depth_HW = np.full((12, 16), 2.5)
    depth_HW[0, :4] = [0, np.nan, -1, np.inf]
    np.save(nyud / "depth" / "0001.npy", depth_HW)
    read_HW = open_layout("nyud", nyud).read("0001")["depth"]
    assert read_HW.dtype == np.float32
    assert read_HW[0].tolist() == [0] * 4 + [2.5] * 12


def test_nyud_normals_are_unit_and_nan_where_nothing_is_coded(nyud):
    rgb_HWC = np.full((12, 16, 3), 200)
    rgb_HWC[0, :4] = [[255, 128, 128], [128, 127, 127], [0, 0, 0], [64, 191, 255]]
    save(nyud / "normals" / "0001.png", rgb_HWC)
    normals_HWC = open_layout("nyud", nyud).read("0001")["normals"]
    truth_HWC = 2 * rgb_HWC / 255 - 1
    truth_HWC /= np.linalg.norm(truth_HWC, axis=-1, keepdims=True)
    truth_HWC[0, 1:3] = np.nan
    assert normals_HWC.dtype == np.float32
    np.testing.assert_allclose(normals_HWC, truth_HWC, atol=1e-6)


def test_nyud_edge_and_its_thinned_region_boundary(nyud):
    edge_HW = np.zeros((12, 16))
    edge_HW[:, 7:9] = 255  # a bar two wide is a region: its boundary is two lines, at columns 6 and 8
    save(nyud / "edge" / "0001.png", edge_HW)
    sample = open_layout("nyud", nyud).read("0001")
    np.testing.assert_array_equal(sample["edge"], edge_HW > 0)
    assert sample["boundary"].dtype == np.uint8
    assert np.unique(np.nonzero(sample["boundary"])[1]).tolist() == [6, 8]


def test_the_samples_of_both_archives_have_what_the_contract_says(nyud, pascal):
    for dataset, root, id_ in (("nyud", nyud, "0006"), ("pascal", pascal, "2008_000003")):
        layout = open_layout(dataset, root)
        assert layout.ids("val")[0] == id_
        sample = layout.read(id_)
        assert sample.pop("id") == id_
        assert sorted(sample) == sorted(("image", "boundary", *layout.tasks))
        for key, array in sample.items():
            assert array.shape[:2] == (12, 16), key
            assert array.dtype == (np.float32 if key in ("depth", "normals") else np.uint8), key


def test_pascal_edges_are_the_thinned_laplacian_of_the_label_map(pascal):
    labelmap_HW = np.random.default_rng(1).integers(0, 400, (3, 4)).repeat(4, 0).repeat(4, 1)
    savemat(pascal / "pascal-context/trainval" / f"{ID}.mat", {"LabelMap": labelmap_HW.astype(np.uint16)})
    padded = np.pad(labelmap_HW, 1, mode="reflect")
    laplacian_HW = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * labelmap_HW
    sample = open_layout("pascal", pascal).read(ID)
    np.testing.assert_array_equal(sample["edge"], thin(laplacian_HW != 0))
    np.testing.assert_array_equal(sample["boundary"], thin(region_boundary(labelmap_HW)))
    assert 0 < sample["edge"].sum() < (laplacian_HW != 0).sum()


def test_pascal_semseg_comes_from_voc12_or_else_from_pascal_context(pascal):
    voc, context = pascal / "semseg/VOC12" / f"{ID}.png", pascal / "semseg/pascal-context" / f"{ID}.png"
    palette = Image.fromarray(np.full((12, 16), 20, np.uint8), "P")
    palette.putpalette([0, 0, 0] * 20 + [9, 99, 199])
    palette.save(voc)
    save(context, np.full((12, 16), 255))
    layout = open_layout("pascal", pascal)
    assert (layout.read(ID)["semseg"] == 20).all()  # the index, not the palette's colour
    voc.unlink()
    assert (layout.read(ID)["semseg"] == 255).all()
    context.unlink()
    with pytest.raises(UserError, match=f"{ID} has no semseg"):
        layout.read(ID)


def test_pascal_saliency_is_above_one_half(pascal):
    values = np.arange(12 * 16).reshape(12, 16) + 60
    save(pascal / "sal_distill" / f"{ID}.png", values)
    np.testing.assert_array_equal(open_layout("pascal", pascal).read(ID)["sal"], values / 255 > 0.5)


def test_pascal_normals_are_kept_on_the_listed_label_ids_only(pascal):
    ids = [1, 2, 3, 4, 5, 6, 7, 427, 428, 457, 458, 459]
    kept = [False, False, True, True, False, True, False, True, False, True, False, False]
    labelmap_HW = np.repeat(np.array(ids, np.uint16)[:, None], 16, axis=1)
    savemat(pascal / "pascal-context/trainval" / f"{ID}.mat", {"LabelMap": labelmap_HW})
    save(pascal / "normals_distill" / f"{ID}.png", np.full((12, 16, 3), [255, 128, 128]))
    normals_HWC = open_layout("pascal", pascal).read(ID)["normals"]
    np.testing.assert_array_equal(np.isfinite(normals_HWC).all(-1).all(1), kept)
    np.testing.assert_array_equal(np.isnan(normals_HWC).all(-1).all(1), ~np.array(kept))


def _box(top, bottom):
    mask_HW = np.zeros((12, 16), np.uint8)
    mask_HW[top:bottom, 2:5] = 1
    return mask_HW


@pytest.mark.parametrize("number", [15, np.array([[15]], np.uint8), np.array([[15.0]])])
def test_parts_of_all_persons_are_merged(tmp_path, number):
    objects = [
        obj(
            number,
            _box(0, 6),
            [("hair", _box(0, 1)), ("neck", _box(1, 2)), ("ruarm", _box(2, 3)), ("llarm", _box(3, 4))],
        ),
        obj(number, _box(0, 12), []),  # a person without parts
        obj(12, _box(6, 12), [("head", _box(6, 12)), ("tail", _box(6, 7))]),  # a dog
        obj(
            number,
            _box(4, 9),
            [("rhand", _box(3, 5)), ("luleg", _box(5, 6)), ("rfoot", _box(6, 7)), ("leye", _box(7, 8))],
        ),
    ]
    save_parts(tmp_path / "parts.mat", objects)
    anno = loadmat(tmp_path / "parts.mat")["anno"]
    assert len(anno[0][0][1][0]) == 4  # the public code's way in
    parts_HW = merge_person_parts(anno, (12, 16))
    assert parts_HW.dtype == np.uint8
    assert parts_HW[:, 3].tolist() == [1, 2, 3, 4, 4, 5, 6, 1, 0, 0, 0, 0]
    assert not parts_HW[:, 5:].any()


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [obj(15, _box(0, 3), [])],
        [obj(7, _box(0, 3), [("head", _box(0, 3))])],
        [obj(15, _box(0, 3), [("head", _box(0, 0))])],
    ],
    ids=["no object", "no parts", "no person", "empty part"],
)
def test_an_image_without_parts_is_all_ignore(tmp_path, objects):
    save_parts(tmp_path / "parts.mat", objects)
    assert (merge_person_parts(loadmat(tmp_path / "parts.mat")["anno"], (12, 16)) == 255).all()


def test_objects_in_a_cell_array_are_read(tmp_path):
    cells = np.empty((1, 2), object)
    for n, (name, top) in enumerate((("torso", 0), ("nose", 1))):
        part = {"part_name": name, "mask": _box(top, top + 1)}
        cells[0, n] = {"class": "person", "class_ind": 15, "mask": _box(0, 2), "parts": part}
    savemat(tmp_path / "parts.mat", {"anno": {"imname": "x", "objects": cells}})
    parts_HW = merge_person_parts(loadmat(tmp_path / "parts.mat")["anno"], (12, 16))
    assert parts_HW[:3, 2].tolist() == [2, 1, 0]


def test_a_persons_strange_part_and_a_mask_of_another_size_are_named(pascal):
    layout = open_layout("pascal", pascal)
    path = pascal / "human_parts" / f"{ID}.mat"
    save_parts(path, [obj(15, _box(0, 3), [("wing", _box(0, 3))])])
    with pytest.raises(UserError, match=f"{ID}.mat .*'wing'"):
        layout.read(ID)
    save_parts(path, [obj(15, _box(0, 3), [("head", np.ones((3, 3)))])])
    with pytest.raises(UserError, match=f"{ID}.mat .*'head' is \\(3, 3\\)"):
        layout.read(ID)


def test_the_other_nyud_archive_is_refused(tmp_path):
    for folder in ("gt_sets", "images", "segmentation", "depth", "normals", "edge"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "images" / "0001.jpg", np.zeros((4, 4, 3)))
    with pytest.raises(UserError, match=r"NYUD_MT.*give the NYUDv2"):
        open_layout("nyud", tmp_path)


def test_a_wrong_root_is_named_with_the_cure(tmp_path, nyud):
    with pytest.raises(UserError, match="no folder"):
        open_layout("nyud", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"one folder too high: give .*NYUDv2"):
        open_layout("nyud", nyud.parent)
    with pytest.raises(UserError, match="no PASCALContext archive: it lacks ImageSets/Context, JPEGImages"):
        open_layout("pascal", nyud)
    with pytest.raises(UserError, match="data set is 'coco': use one of nyud, pascal"):
        open_layout("coco", nyud)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "edge/0001.png").unlink(), "edge/0001.png is missing"),
        (lambda root: (root / "images/0001.png").write_bytes(b""), "images/0001.png is 0 bytes"),
        (lambda root: (root / "images/0001.png").write_bytes(b"not a picture"), "images/0001.png cannot be read"),
        (
            lambda root: save(root / "normals/0001.png", np.zeros((3, 4, 3))),
            "0001: normals is 3x4 but its image is 12x16",
        ),
        (lambda root: save(root / "segmentation/0001.png", np.full((12, 16), 41)), "label 41, outside 0..40"),
        (lambda root: save(root / "segmentation/0001.png", np.zeros((12, 16, 3))), "not one 8-bit channel"),
        (lambda root: np.save(root / "depth/0001.npy", np.array([{}]), allow_pickle=True), "0001.npy cannot be read"),
    ],
)
def test_a_bad_file_is_named(nyud, damage, message):
    damage(nyud)
    with pytest.raises(UserError, match=message) as caught:
        open_layout("nyud", nyud).stored("0001")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("a\nb\na\n", "has a twice"), ("a/b\n", "'a/b': an id is"), ("a.jpg\n", "'a.jpg': an id is")],
)
def test_a_bad_id_list_is_named(tmp_path, text, message):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_id_list(tmp_path / "ids.txt")
