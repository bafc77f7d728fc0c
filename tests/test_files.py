"""Whole files, and JSON without what JSON does not know."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import threading

import numpy as np
import pytest

from fgmoe_dist.errors import CannotWrite, UserError, first_line, one_line, told
from fgmoe_dist.files import PARTIAL, append_line, to_json, whole_file, write_atomically, write_json, write_png


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


WAYS = {
    "whole": lambda path: write_atomically(path, b"x"),
    "json": lambda path: write_json(path, {}),
    "png": lambda path: write_png(path, np.zeros((2, 2, 3), np.uint8)),
    "line": lambda path: append_line(path, "x"),
}
BAD = {
    "a folder in its way": lambda d: (d / "there").mkdir() or d / "there",
    "a file as its folder": lambda d: write_atomically(d / "file", "") / "x.json",
    "no place for files": lambda d: d.__class__("/proc/x"),
    "a full disk": lambda d: d.__class__("/dev/full"),
    "a name too long": lambda d: d / ("x" * 256),
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("place", BAD.values(), ids=BAD)
def test_what_cannot_be_written_is_told_in_a_line_and_leaves_nothing(tmp_path, write, place):
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CannotWrite) as error:
        write(path)
    assert told(error.value).startswith(f"{path}: cannot be written (") and "name another place" in told(error.value)
    assert error.value.errno and sorted(tmp_path.rglob("*")) == before
    again = pickle.loads(pickle.dumps(error.value))  # as it comes from another process
    assert type(again) is CannotWrite and str(again) == str(error.value)


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "é" * 125 + ".npy", "a\nb.png", os.fsdecode(b"b\xff.png"), " "])
def test_any_name_that_the_disk_takes_is_written(tmp_path, name):
    write_png(tmp_path / name, np.full((2, 3), 7, np.uint8))
    write_atomically(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"new"


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store/real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "store/real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomically(tmp_path / "pipe", b"x")
    reader.join(10)
    assert read == [b"x"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_threads_do_not_share_what_they_write_beside(tmp_path):
    seen, both = [], threading.Barrier(2)

    def write(number):
        with whole_file(tmp_path / "a") as beside:
            seen.append(beside)
            both.wait(10)
            beside.write_text(str(number))
            both.wait(10)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(seen)) == 2 and os.listdir(tmp_path) == ["a"]


def test_every_json_is_one_that_strict_readers_take(tmp_path):
    def refuse(word):
        raise AssertionError(word)

    deep = {"a": [{"b": (float("nan"), np.float64("inf"), np.float32("-inf"))}], "c": -0.0, "ids": ["\udcff"]}
    assert json.loads(to_json(deep), parse_constant=refuse) == {"a": [{"b": [None] * 3}], "c": 0.0, "ids": ["\udcff"]}


def test_a_message_is_one_line_whatever_a_name_holds():
    name = os.fsdecode(b"a\nb\x1b[31m\xff\r.png")
    assert one_line(f"image {name}: é 漢") == r"image a\nb\x1b[31m\udcff\r.png: é 漢"
    assert told(UserError(f"{name}: is empty")) == r"a\nb\x1b[31m\udcff\r.png: is empty"
    assert told(KeyError("x")) is None and told(OSError(errno.ENOSPC, "full")) is None


def test_an_error_is_told_in_a_line():
    assert first_line(OSError("\nno room\nmore")) == "no room"
    assert first_line(KeyError()) == "KeyError"
