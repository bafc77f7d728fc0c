"""Each image's sums: kept whole, read back whole, and no other file taken for them."""

import json
import pickle

import numpy as np
import pytest

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics.image_sums import ImageSums

ABOUT = {"classes": {"semseg": ["a", "b"]}}


def made(images=5, start=0):
    sums = ImageSums()
    for n in range(start, start + images):
        rng = np.random.default_rng(n)
        histogram = np.where(rng.random(300) < 0.1, rng.integers(1, 99999, 300), 0).astype(np.float64)
        sums.add(f"image {n}", {"a": histogram, "b": rng.normal(size=3) * (n != 2)})
    return sums


def test_what_is_saved_comes_back_to_the_last_bit(tmp_path):
    sums = made()
    again, about = ImageSums.load(sums.save(tmp_path / "eval" / "7.npz", ABOUT))
    assert again.ids == [f"image {n}" for n in range(5)] and again.tasks == ["a", "b"] and about == ABOUT
    for task in "ab":
        np.testing.assert_array_equal(again.matrix(task).toarray(), sums.matrix(task).toarray())
    assert not again.matrix("b").toarray()[2].any()


def test_parts_of_a_set_join_and_images_are_found_by_id():
    whole, part = made(5), made(2)
    part.extend(made(3, start=2))
    ids = ["image 4", "image 0"]
    np.testing.assert_array_equal(part.matrix("a").toarray(), whole.matrix("a").toarray())
    np.testing.assert_array_equal(part.matrix("b", ids).toarray(), whole.matrix("b").toarray()[[4, 0]])


def changed(path, **arrays):
    with np.load(path) as file:
        kept = dict(file)
    np.savez(path, **{**kept, **{name.replace("__", "/"): value for name, value in arrays.items()}})


class Spy:
    def __reduce__(self):
        return pytest.fail, ("was unpickled",)


@pytest.mark.parametrize(
    "damage", ["cut", "words", "object", "columns", "rows", "header", "format", "missing", "empty"]
)
def test_any_other_file_is_refused_by_name(tmp_path, damage):
    path = made().save(tmp_path / "7.npz", ABOUT)
    header = {"format": 1, "ids": ["a"], "tasks": ["a"], "about": {}}
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-200])
        case "words":
            path.write_text("no archive at all")
        case "object":
            path.write_bytes(pickle.dumps(Spy()))
        case "columns":
            changed(path, a__indices=np.full_like(np.load(path)["a/indices"], 60000))
        case "rows":
            changed(path, a__indptr=np.array([0, 3, 1, 2, 3, 4]))
        case "header":
            changed(path, header=np.frombuffer(b"[]", np.uint8))
        case "format":
            changed(path, header=np.frombuffer(json.dumps({**header, "format": 9}).encode(), np.uint8))
        case "missing":
            changed(path, header=np.frombuffer(json.dumps({**header, "tasks": ["c"]}).encode(), np.uint8))
        case "empty":
            path.write_bytes(b"")
    with pytest.raises(UserError, match="7.npz"):
        ImageSums.load(path)
