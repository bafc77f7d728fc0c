"""Whole files, and JSON without what JSON does not know."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from fgmoe_dist.errors import first_line
from fgmoe_dist.files import PARTIAL, whole_file, write_atomically, write_json


def test_a_file_is_there_whole_with_its_folder(tmp_path):
    assert write_atomically(tmp_path / "a/b.bin", b"\x00\xff").read_bytes() == b"\x00\xff"
    assert write_atomically(tmp_path / "a/b.bin", "é").read_bytes() == "é".encode()
    assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_json_has_null_for_what_is_no_number(tmp_path):
    value = {"a": float("nan"), "b": [1.5, float("inf")], "c": (np.float32(0.5), True, 3, None, "x")}
    assert json.loads(write_json(tmp_path / "x.json", value).read_text()) == {
        "a": None, "b": [1.5, None], "c": [0.5, True, 3, None, "x"],
    }  # fmt: skip


def test_a_file_that_fails_its_check_does_not_take_the_name(tmp_path):
    path = write_atomically(tmp_path / "a.bin", "old")
    with pytest.raises(KeyError), whole_file(path) as beside:
        beside.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.bin"]
    with whole_file(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.parent == tmp_path and beside.suffix == PARTIAL
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.bin"]


def test_an_error_is_told_in_a_line():
    assert first_line(OSError("\nno room\nmore")) == "no room"
    assert first_line(KeyError()) == "KeyError"
