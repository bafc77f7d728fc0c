"""Rooms: geometry against closed forms, streams, the two layouts, and what a data set promises about its bytes."""

import argparse
import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.errors import UserError
from fgmoe_dist.rooms import render, write_rooms
from fgmoe_dist.rooms.camera import choose, look_at
from fgmoe_dist.rooms.furniture import Thing, make, names
from fgmoe_dist.rooms.geometry import Solid, rotation
from fgmoe_dist.rooms.labels import KINDS
from fgmoe_dist.rooms.people import person, pet
from fgmoe_dist.rooms.programs import furnish
from fgmoe_dist.rooms.render import Renderer, _within_patches
from fgmoe_dist.rooms.scene import Room
from fgmoe_dist.rooms.streams import SPLITS, stream
from fgmoe_dist.rooms.textures import Painter
from fgmoe_dist.rooms.write import salient
from fgmoe_dist.verbs import rooms as verb

SMALL = (48, 64)


# ------------------------------------------------------------------------------------------- exact labels


def _pinhole_rays(camera, size):
    """Independent of `Camera.rays`: pixel by pixel, from the definition of a pinhole."""
    height, width = size
    rays = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            x = (column + 0.5) / width - 0.5
            y = -((row + 0.5) / height - 0.5) * height / width
            rays[row, column] = camera.turn @ [x / camera.focal, y / camera.focal, -1.0]
    return rays


def _slabs(origin, rays, low, high):
    """Where each ray enters and leaves a box, and the axes of the faces it does so through."""
    with np.errstate(divide="ignore"):
        to_low, to_high = (low - origin) / rays, (high - origin) / rays
    near, far = np.minimum(to_low, to_high), np.maximum(to_low, to_high)
    return near.max(-1), far.min(-1), near.argmax(-1), far.argmin(-1)


def _box_in_a_room(size, low, high):
    """A room of six inward faces as one thing ("wall"), and a box ("box") in it."""
    room = Room(np.random.default_rng(0), np.random.default_rng(1), size)
    for kind, corners in (("wall", ((0, 0, 0), size)), ("box", (low, high))):
        solid = Solid()
        solid.box(*corners, "body")
        room.put(Thing(kind, solid.triangles()), np.eye(3), np.zeros(3))
    return room.scene()


@pytest.mark.parametrize("seed", range(4))
def test_depth_normals_and_ids_equal_ray_box_intersection(seed):
    rng = np.random.default_rng(seed)
    size, low = np.array([4.0, 5.0, 2.6]), np.array([1.3, 2.2, 0.4])
    high = low + rng.uniform(0.4, 1.2, 3)
    at = np.array([rng.uniform(0.2, 1.0), rng.uniform(0.2, 1.5), rng.uniform(1.0, 2.0)])
    camera = look_at(at, (low + high) / 2 + rng.normal(0, 0.2, 3), rng.uniform(0.6, 0.9), rng.normal(0, 0.05))
    view, _ = Renderer(_box_in_a_room(size, low, high)).view(camera, SMALL)

    rays = _pinhole_rays(camera, SMALL)
    enter, leave, enter_axis, _ = _slabs(at, rays, low, high)
    _, wall, _, wall_axis = _slabs(at, rays, np.zeros(3), size)
    hits = (enter < leave) & (enter > 0)
    depth = np.where(hits, enter, wall)
    axis = np.where(hits, enter_axis, wall_axis)
    world = np.eye(3)[axis] * -np.sign(np.take_along_axis(rays, axis[..., None], -1))
    sure = np.abs(leave - enter) > 1e-4  # a ray that grazes the box's edge may go either way

    assert 0.02 < hits.mean() < 0.9
    assert np.array_equal(view.thing_HW[sure], hits[sure].astype(int))
    np.testing.assert_allclose(view.depth_HW[sure], depth[sure], rtol=1e-6)
    cosine = np.einsum("hwi,hwi->hw", view.normal_HW3 @ camera.turn.T, world)
    assert (cosine[sure] > 1 - 1e-5).mean() > 0.995  # the rest: pixels on the edge of two walls, to single precision
    assert np.array_equal(view.depth_HW > 0, np.ones(SMALL, bool))


def test_normals_are_those_of_a_sphere():
    room = Room(np.random.default_rng(0), np.random.default_rng(1), (4, 4, 4))
    solid = Solid()
    solid.ball((0, 0, 0), (0.5, 0.5, 0.5), "body", sides=48)
    room.put(Thing("box", solid.triangles()), np.eye(3), np.array([2.0, 3, 1]))
    camera = look_at((2, 0.5, 1), (2, 3, 1), 1.0)
    view, _ = Renderer(room.scene()).view(camera, (64, 64))
    rays = _pinhole_rays(camera, (64, 64))
    hit = view.depth_HW > 0
    point = camera.at + rays * view.depth_HW[..., None]
    radial = point[hit] - (2, 3, 1)
    np.testing.assert_allclose(np.linalg.norm(radial, axis=-1), 0.5, atol=0.004)
    cosine = np.einsum("ni,ni->n", view.normal_HW3[hit] @ camera.turn.T, radial)
    cosine /= np.linalg.norm(radial, axis=-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.1
    # Straight ahead the normal looks back at the camera: +z, which is why walls ahead are blue in the PNGs.
    np.testing.assert_allclose(view.normal_HW3[32, 32], (0, 0, 1), atol=0.05)
    assert view.normal_HW3[32, 40, 0] > 0.3 and view.normal_HW3[23, 32, 1] > 0.3
    assert not view.normal_HW3[~hit].any()


@pytest.mark.parametrize("layout", ["nyud", "pascal"])
def test_a_furnished_room_is_closed_and_consistent(layout):
    scene = furnish(layout, 3, "train", 1)
    renderer = Renderer(scene)
    camera = choose(scene, renderer.tracer, stream(3, "train", 1, "camera"), layout)
    view, _ = renderer.view(camera, SMALL)
    rays = _pinhole_rays(camera, SMALL)
    point = camera.at + rays * view.depth_HW[..., None]
    assert (view.depth_HW > 0).all()
    assert (point > -0.2).all() and (point < scene.size + 0.2).all()  # panes lie behind the wall
    np.testing.assert_allclose(np.linalg.norm(view.normal_HW3, axis=-1), 1, atol=1e-5)
    kinds = np.array(scene.kinds)[view.thing_HW]
    for kind, height, facing in (("floor", 0.0, 1), ("ceiling", scene.size[2], -1)):
        np.testing.assert_allclose(point[kinds == kind][:, 2], height, atol=1e-6)
        up = (view.normal_HW3 @ camera.turn.T)[kinds == kind][:, 2]
        np.testing.assert_allclose(up, facing, atol=1e-5)
    toward_viewer = np.einsum("hwi,hwi->hw", view.normal_HW3 @ camera.turn.T, rays)
    assert (toward_viewer <= 1e-6).all()


# ------------------------------------------------------------------------------------------- shapes and streams


@pytest.mark.parametrize("name", [n for n in names() if n not in ("window", "curtain", "blinds")])
def test_furniture_stands_on_its_frame(name):
    options = {"height": 2.5} if name in ("ceiling_lamp", "column") else {}
    thing = make(name, np.random.default_rng(5), **options)
    low, high = thing.shape.bounds
    assert thing.kind in KINDS
    assert np.isfinite(thing.shape.vertex_T33).all() and np.isfinite(thing.shape.normal_T33).all()
    assert low[2] > -0.2 and high[2] < 2.6 and (high - low < 3).all()
    other = make(name, np.random.default_rng(6), **options)
    assert other.shape.vertex_T33.shape != thing.shape.vertex_T33.shape or not np.array_equal(
        other.shape.vertex_T33, thing.shape.vertex_T33
    )


def test_round_shapes_face_outwards():
    solid = Solid()
    solid.ball((0, 0, 0), (0.3, 0.5, 0.2), "a")
    solid.cushion((-1, -1, -1), (1, 1, 1), "a")
    solid.tube((0, 0, 0), (0.5, 0.2, 0.9), 0.1, "a")
    solid.box((-1, -1, -1), (1, 1, 1), "a")
    for vertex, normal, *_ in solid.pieces:
        middle = vertex.reshape(-1, 3).mean(0)
        outward = np.einsum("tci,tci->tc", normal, vertex - middle)
        assert (outward > -1e-9).mean() > 0.97
        np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("axis", "xyz")
def test_rotation_is_right_handed(axis):
    i, j, k = {"x": (0, 1, 2), "y": (1, 2, 0), "z": (2, 0, 1)}[axis]
    np.testing.assert_allclose(rotation(axis, np.pi / 2) @ np.eye(3)[j], np.eye(3)[k], atol=1e-12)
    np.testing.assert_allclose(rotation(axis, 1.0)[i], np.eye(3)[i])


def _shape_hashes(split):
    scenes = [furnish(layout, 0, split, i) for layout in ("nyud", "pascal") for i in range(4)]
    return [hashlib.sha256(shape.tobytes()).hexdigest() for scene in scenes for shape in scene.shapes]


def test_train_and_val_share_no_shape_and_no_seed():
    train, val = _shape_hashes("train"), _shape_hashes("val")
    assert len(train) > 100 and not set(train) & set(val)
    draws = {stream(s, split, i, p).random() for s in (0, 1) for split in SPLITS for i in range(5) for p in ("a", "b")}
    assert len(draws) == 2 * 2 * 5 * 2


def test_materials_are_drawn_without_knowing_the_class():
    """A nearest-mean classifier on a thing's colours does no better than chance on new scenes."""
    colours, kinds = [], []
    for index in range(30):
        scene = furnish("nyud", 11, "train", index)
        mean_M3 = scene.paint.mean_albedo()
        for thing in np.unique(scene.thing_T):
            colours.append(np.sqrt(mean_M3[scene.material_T[scene.thing_T == thing]].mean(0)))
            kinds.append(scene.kinds[thing])
    colours, kinds = np.array(colours), np.array(kinds)
    common = [k for k in np.unique(kinds) if (kinds == k).sum() >= 16 and k not in ("window",)]
    first = np.arange(len(kinds)) < len(kinds) // 2
    means = np.array([colours[first & (kinds == k)].mean(0) for k in common])
    recall = []
    for i, kind in enumerate(common):
        test = colours[~first & (kinds == kind)]
        recall.append((np.linalg.norm(test[:, None] - means, axis=-1).argmin(1) == i).mean())
    assert len(common) >= 6
    assert np.mean(recall) < 1 / len(common) + 0.12


def test_people_have_all_parts_and_stand_on_the_floor():
    wanted = {"head", "hair", "leye", "reye", "lear", "rear", "nose", "mouth", "neck", "torso"}
    wanted |= {side + part for side in "lr" for part in ("uarm", "larm", "hand", "uleg", "lleg", "foot", "ebrow")}
    for pose in ("stand", "walk", "reach", "sit"):
        thing = person(np.random.default_rng(2), pose)
        assert set(thing.shape.parts) - {""} == wanted
        assert not (thing.shape.part_T == 0).any()
        low, high = thing.shape.bounds
        if pose == "sit":
            assert -0.7 < low[2] < -0.2
        else:
            assert abs(low[2]) < 1e-6 and 1.3 < high[2] < 2.6
        middle = {
            n: thing.shape.vertex_T33[thing.shape.part_T == i].mean((0, 1))
            for i, n in enumerate(thing.shape.parts)
            if n
        }
        assert middle["head"][2] > middle["torso"][2] > middle["lfoot"][2]
        assert middle["luarm"][0] > middle["ruarm"][0]  # looking along -y, one's left is +x
        assert middle["nose"][1] < middle["hair"][1]
    assert {pet(np.random.default_rng(0), k).kind for k in ("cat", "dog")} == {"cat", "dog"}


# ------------------------------------------------------------------------------------------- light and texture


def test_the_light_filter_averages_within_a_patch_only():
    patch = np.zeros((8, 12), int)
    patch[:, 6:] = 1
    light = np.where(patch == 0, 2.0, 10.0).astype(np.float32)
    light[3, 3] = 18.0
    out = _within_patches(np.repeat(light.reshape(-1, 1), 3, 1), patch, range(-2, 2)).reshape(8, 12, 3)
    np.testing.assert_allclose(out[:, 6:], 10.0, rtol=1e-6)
    np.testing.assert_allclose(out[4, 4], 3.0, rtol=1e-6)  # 1 of 16 is 18: 2 + 16 / 16
    np.testing.assert_allclose(out[0, 0], 2.0, rtol=1e-6)


def test_textures_are_colours_and_fade_to_their_mean_far_away():
    painter = Painter(np.random.default_rng(0))
    for _ in range(40):
        painter.any()
    paint = painter.finish()
    material, uv = np.repeat(np.arange(40), 50), np.random.default_rng(1).uniform(0, 5, (2000, 2)).astype(np.float32)
    near = paint.albedo(material, uv, np.full(2000, 0.001, np.float32))
    far = paint.albedo(material, uv, np.full(2000, 10.0, np.float32)).reshape(40, 50, 3)
    assert (near >= 0).all() and (near <= 1).all()
    assert far.std(1).max() < 0.1
    np.testing.assert_allclose(far.mean(1), paint.mean_albedo(), atol=0.08)


def test_a_lamp_lights_what_faces_it_and_a_box_throws_a_shadow():
    scene, view, image = render("nyud", 0, "train", 0, SMALL)
    assert image.shape == (*SMALL, 3) and image.dtype == np.uint8
    assert 40 < image.mean() < 215 and image.std() > 15
    assert view.thing_HW.max() < len(scene.kinds)


# ------------------------------------------------------------------------------------------- files


def _digest(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def nyud(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms") / "nyud"
    write_rooms("nyud", root, 8, 3, 5, SMALL, workers=1)
    return root


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms") / "pascal"
    write_rooms("pascal", root, 4, 2, 5, SMALL, workers=1)
    return root


def test_nyud_layout(nyud):
    train, val = ((nyud / f"gt_sets/{split}.txt").read_text().split() for split in SPLITS)
    assert len(train) == 8 and len(val) == 3 and not set(train) & set(val)
    classes = set()
    for name in train + val:
        image, semseg, normals, edge = (
            np.asarray(Image.open(nyud / folder / f"{name}.png"))
            for folder in ("images", "segmentation", "normals", "edge")
        )
        depth = np.load(nyud / f"depth/{name}.npy", allow_pickle=False)
        assert image.shape == normals.shape == (*SMALL, 3)
        assert semseg.shape == edge.shape == depth.shape == SMALL
        assert {a.dtype for a in (image, semseg, normals, edge)} == {np.dtype(np.uint8)}
        assert depth.dtype == np.float32 and depth.min() > 0 and depth.max() < 12
        assert set(np.unique(edge)) <= {0, 255} and 0.02 < (edge > 0).mean() < 0.6
        length = np.linalg.norm(normals / 127.5 - 1, axis=-1)
        assert abs(length - 1).max() < 0.02
        assert semseg.min() >= 1 and semseg.max() <= 40
        # Where classes differ there is an edge.
        assert (edge[:, :-1][semseg[:, :-1] != semseg[:, 1:]] == 255).all()
        classes |= set(np.unique(semseg))
    assert len(classes) >= 15
    assert {KINDS["wall"].nyu, KINDS["floor"].nyu} <= classes


def test_pascal_layout_reads_as_the_public_readers_do(pascal):
    people = 0
    train, val = ((pascal / f"ImageSets/Context/{split}.txt").read_text().split() for split in SPLITS)
    for name in train + val:
        image = np.asarray(Image.open(pascal / f"JPEGImages/{name}.jpg"))
        semseg = np.asarray(Image.open(pascal / f"semseg/VOC12/{name}.png"))
        saliency = np.asarray(Image.open(pascal / f"sal_distill/{name}.png"))
        normals = np.asarray(Image.open(pascal / f"normals_distill/{name}.png"))
        context = loadmat(pascal / f"pascal-context/trainval/{name}.mat")["LabelMap"]
        assert image.shape == normals.shape == (*SMALL, 3)
        assert semseg.shape == saliency.shape == context.shape == SMALL
        assert set(np.unique(semseg)) <= {*range(21), 255} and 255 in semseg
        assert context.min() >= 1 and context.max() <= 459
        assert set(np.unique(saliency)) == {0, 255}
        objects = loadmat(pascal / f"human_parts/{name}.mat")["anno"][0][0][1][0]
        for one in objects:
            kind, mask = int(np.squeeze(one[1])), one[2]
            inside = (mask > 0) & (semseg != 255)
            assert (semseg[inside] == kind).all()
            if kind == 15:
                people += 1
                union = np.zeros(SMALL, int)
                for part in one[3][0]:
                    assert isinstance(str(part[0][0]), str) and part[1].shape == SMALL
                    union += part[1]
                assert np.array_equal(union, mask)  # parts tile the person
                assert (saliency[mask > 0] == 255).all()
            else:
                assert one[3].size == 0
    assert people >= 3


def test_the_archive_readers_read_rooms(nyud, pascal):
    for dataset, root in (("nyud", nyud), ("pascal", pascal)):
        layout = open_layout(dataset, root)
        for split in SPLITS:
            for name in layout.ids(split):
                sample = layout.read(name)
                assert {"image", "semseg", "edge", "normals"} <= set(sample)


def test_same_seed_same_bytes_for_any_workers(nyud, tmp_path):
    write_rooms("nyud", tmp_path / "two", 8, 3, 5, SMALL, workers=2)
    assert _digest(tmp_path / "two") == _digest(nyud)


def test_an_interrupted_set_is_finished_and_a_different_one_refused(pascal, tmp_path):
    args = ("pascal", tmp_path / "set", 1, 1, 5, SMALL)
    write_rooms(*args, workers=1)
    before = _digest(tmp_path / "set")
    (tmp_path / "set/JPEGImages/train_00000.jpg").unlink()
    (tmp_path / "set/sal_distill/train_00000.png").unlink()
    (tmp_path / "set/ImageSets/Context/val.txt").unlink()
    (tmp_path / "set/JPEGImages/.train_00000.jpg.1234.part").write_bytes(b"half")
    write_rooms(*args, workers=1)
    assert _digest(tmp_path / "set") == before
    # An image is the same however many the set has.
    assert before["JPEGImages/train_00000.jpg"] == _digest(pascal)["JPEGImages/train_00000.jpg"]
    for change in ({"seed": 6}, {"layout": "nyud"}, {"size": (64, 64)}, {"train": 2}):
        wanted = {"layout": "pascal", "train": 1, "val": 1, "seed": 5, "size": SMALL} | change
        with pytest.raises(UserError, match=f"holds other rooms .*{next(iter(change))}"):
            write_rooms(out=tmp_path / "set", workers=1, **wanted)
    assert _digest(tmp_path / "set") == before


def test_refusals(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not a set of rooms"):
        write_rooms("nyud", tmp_path, 1, 0, 0, SMALL)
    for arguments, message in (
        (("nyu", 1, 0, 0, SMALL), "layout is 'nyu'"),
        (("nyud", -1, 0, 0, SMALL), "train is -1"),
        (("nyud", 1, 0, -3, SMALL), "seed is -3"),
        (("nyud", 1, 0, 0, (8, 64)), "size is 8x64"),
    ):
        layout, *rest = arguments
        with pytest.raises(UserError, match=message):
            write_rooms(layout, tmp_path / "new", *rest)
    assert not (tmp_path / "new").exists()


def test_salient_are_people_and_the_foremost_object(pascal):
    scene, view, _ = render("pascal", 5, "train", 0, SMALL)
    mask = salient(scene, view)
    people = np.isin(view.thing_HW, [i for i, kind in enumerate(scene.kinds) if kind == "person"])
    assert mask.any() and mask[people].all()
    others = np.unique(view.thing_HW[mask & ~people])
    assert len(others) <= 1


def test_verb(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    common = ["--layout", "nyud", "--out", str(tmp_path / "set"), "--train", "1", "--val", "0", "--workers", "1"]
    verb.run(parser.parse_args([*common, "--size", "32x48", "--json", str(tmp_path / "f.json")]))
    assert "1 training and 0 validation rooms" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["size"] == [32, 48]
    assert Image.open(tmp_path / "set/images/train_00000.png").size == (48, 32)
    with pytest.raises(UserError, match="--size is '32'"):
        verb.run(parser.parse_args([*common, "--size", "32"]))
