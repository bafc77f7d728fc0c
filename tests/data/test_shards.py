"""Building, verifying and dumping shards of tiny archives."""

import hashlib
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from fgmoe_dist.data import shard_writer
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards, dump_sample, verify_shards
from fgmoe_dist.data.shardset import ShardSet, _index_of, decode_sample, read_shard
from fgmoe_dist.errors import UserError
from tests.archives import write_nyud, write_pascal
from tests.damage import add, drop, npy, png, replace, rewrite


@pytest.fixture(scope="module")
def nyud(tmp_path_factory):
    return open_layout("nyud", write_nyud(tmp_path_factory.mktemp("a") / "NYUDv2"))


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    return open_layout("pascal", write_pascal(tmp_path_factory.mktemp("a") / "PASCALContext"))


@pytest.fixture
def built(nyud, tmp_path):
    build_shards(nyud, "train", tmp_path / "train", samples_per_shard=2)
    return tmp_path / "train"


def _bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_index_says_what_the_contract_asks(nyud, built):
    index = json.loads((built / "index.json").read_text())
    assert (index["format"], index["dataset"], index["split"], index["samples"]) == (1, "nyud", "train", 5)
    assert index["tasks"] == ["semseg", "depth", "normals", "edge"]
    assert index["classes"]["semseg"][0] == "wall" and index["boundary_max_dist"] == 0.011
    assert set(index["encodings"]) == {"image", "semseg", "depth", "normals", "edge", "boundary"}
    assert [(shard["name"], shard["samples"]) for shard in index["shards"]] == [
        ("nyud-train-000000.tar", 2),
        ("nyud-train-000001.tar", 2),
        ("nyud-train-000002.tar", 1),
    ]
    for shard in index["shards"]:
        data = (built / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert sorted(path.name for path in built.iterdir()) == ["index.json", *(s["name"] for s in index["shards"])]
    shardset = ShardSet.open(built)
    assert shardset.classes == index["classes"] and shardset.samples == 5
    assert sorted(id_ for shard in shardset.shards for id_ in shard.ids) == nyud.ids("train")


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_what_is_dumped_equals_what_the_archive_holds(dataset, nyud, pascal, tmp_path):
    layout = {"nyud": nyud, "pascal": pascal}[dataset]
    build_shards(layout, "val", tmp_path / "val")
    for id_ in layout.ids("val"):
        truth = layout.read(id_)
        written = dump_sample(tmp_path / "val", id_, tmp_path / "out")
        assert {path.name for path in written} == {f"{id_}.image.png"} | {
            f"{id_}.{key}.npy" for key in truth if key not in ("id", "image")
        }
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out" / f"{id_}.image.png")), truth["image"])
        for key in truth.keys() - {"id", "image"}:
            array = np.load(tmp_path / "out" / f"{id_}.{key}.npy", allow_pickle=False)
            assert array.dtype == truth[key].dtype
            np.testing.assert_array_equal(array, truth[key])


def test_a_jpeg_keeps_its_bytes(pascal, tmp_path):
    shardset = build_shards(pascal, "val", tmp_path / "val")
    entries = read_shard(shardset.shards[0])["2008_000003"]
    assert entries["image"] == ("jpg", (pascal.root / "JPEGImages/2008_000003.jpg").read_bytes())


def test_the_same_archive_gives_the_same_bytes_for_any_number_of_workers(nyud, built, tmp_path):
    build_shards(nyud, "train", tmp_path / "again", samples_per_shard=2, workers=2)
    assert _bytes(tmp_path / "again") == _bytes(built)


def test_webdataset_itself_reads_the_shards(built):
    urls = [str(path) for path in sorted(built.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in samples) == ["0001", "0002", "0003", "0004", "0005"]
    assert {"image.npy", "semseg.png", "depth.npy"} < set(samples[0])


def test_an_interrupted_build_goes_on(nyud, built, tmp_path, monkeypatch):
    write, count = shard_writer.write_atomically, iter(range(100))

    def break_off(path, data):
        if next(count) == 2:  # the plan and the first shard are written
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(shard_writer, "write_atomically", break_off)
    with pytest.raises(KeyboardInterrupt):
        build_shards(nyud, "train", tmp_path / "b", samples_per_shard=2)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["nyud-train-000000.tar", "plan.json"]
    kept = (tmp_path / "b" / "nyud-train-000000.tar").stat().st_mtime_ns
    with pytest.raises(UserError, match="unfinished build"):
        build_shards(nyud, "val", tmp_path / "b", samples_per_shard=2)
    monkeypatch.setattr(shard_writer, "write_atomically", write)
    (tmp_path / "b" / ".nyud-train-000001.tar.77.part").write_bytes(b"half")  # what SIGKILL would leave
    build_shards(nyud, "train", tmp_path / "b", samples_per_shard=2)
    assert (tmp_path / "b" / "nyud-train-000000.tar").stat().st_mtime_ns == kept
    assert _bytes(tmp_path / "b") == _bytes(built)


def test_a_finished_set_is_kept_and_another_is_not_written_over(nyud, built):
    before = (built / "index.json").stat().st_mtime_ns
    build_shards(nyud, "train", built, samples_per_shard=2)
    assert (built / "index.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds other shards"):
        build_shards(nyud, "train", built, samples_per_shard=3)


def test_an_id_list_restricts_and_a_stranger_is_named(nyud, tmp_path):
    shardset = build_shards(nyud, "train", tmp_path / "some", ids=["0004", "0002"])
    assert sorted(shardset.shards[0].ids) == ["0002", "0004"]
    with pytest.raises(UserError, match="'0007' is not in nyud train"):
        build_shards(nyud, "train", tmp_path / "more", ids=["0004", "0007"])


def test_a_bad_source_file_leaves_no_shard_behind(tmp_path):
    layout = open_layout("nyud", write_nyud(tmp_path / "NYUDv2"))
    (layout.root / "depth" / "0003.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"depth/0003\.npy is 0 bytes"):
        build_shards(layout, "train", tmp_path / "out", samples_per_shard=5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]


def test_verify_is_silent_on_a_whole_set_and_names_each_fault(built):
    assert verify_shards(built) == []
    first, second, third = sorted(built.glob("*.tar"))
    first.write_bytes(first.read_bytes()[:3000])
    data = bytearray(second.read_bytes())
    data[data.index(b"\x93NUMPY") + 200] ^= 1  # one bit of a pixel
    second.write_bytes(data)
    third.unlink()
    faults = verify_shards(built)
    assert len(faults) == 3
    assert "000000.tar is not what its index says (3000 bytes" in faults[0]
    assert "000001.tar has another sha256" in faults[1]
    assert "000002.tar (No such file or directory)" in faults[2]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (replace("image", b""), "image is 0 bytes long"),
        (replace("semseg", b"nonsense"), "semseg is no readable png"),
        (replace("semseg", png(np.zeros((3, 4), np.uint8))), "semseg is 3x4 but its image is 12x16"),
        (replace("semseg", png(np.full((12, 16), 40, np.uint8))), "semseg holds 40, outside its range"),
        (replace("edge", png(np.zeros((12, 16, 3), np.uint8))), r"edge has shape \(12, 16, 3\)"),
        (replace("depth", npy(np.zeros((12, 16)))), "depth has type float64, not float32"),
        (replace("depth", npy(np.full((12, 16), -1, np.float32))), "depth holds -1.0, outside its range"),
        (replace("depth", npy(np.array([print], object))), "depth is no readable .npy"),
        (drop("image"), "it has no image"),
        (add("../../evil.image.npy"), r"'../../evil.image.npy', not ID"),
        (add("0009.semseg.pkl"), "'0009.semseg.pkl', not ID"),
        (add("0009.pyd"), "'0009.pyd', not ID"),
        (add("0009.image.npy", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link or special file"),
    ],
)
def test_verify_names_what_no_builder_would_write(built, change, fault):
    rewrite(built, change)
    faults = verify_shards(built)
    assert len(faults) == 1, faults
    assert re.search(fault, faults[0])
    assert "nyud-train-000000.tar" in faults[0] and "\n" not in faults[0]


def test_a_set_opens_from_a_folder_a_brace_pattern_and_a_pipe(built):
    whole = ShardSet.open(built)
    pattern = f"{built}/nyud-train-{{000000..000001}}.tar"
    assert ShardSet.open(pattern).shards == whole.shards[:2]
    piped = ShardSet.open(f"pipe:cat {pattern}")
    assert piped.samples == 4
    shard = piped.shards[1]
    sample = decode_sample(shard, shard.ids[0], read_shard(shard)[shard.ids[0]], ("depth",))
    assert sample["depth"].shape == (12, 16)
    assert ShardSet.open([built, str(built)]).samples == 10


def test_mistakes_in_where_are_named(built, pascal, tmp_path):
    with pytest.raises(UserError, match=r"cannot read shard index .*nothing/index.json"):
        ShardSet.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no 'nyud-train-000009.tar'"):
        ShardSet.open(built / "nyud-train-000009.tar")
    with pytest.raises(UserError, match="unbalanced braces"):
        ShardSet.open(f"{built}/nyud-train-{{0..1.tar")
    with pytest.raises(UserError, match="cannot read shard index pipe:"):
        ShardSet.open(f"pipe:cat {tmp_path}/nothing-0.tar 2>/dev/null")
    build_shards(pascal, "val", tmp_path / "p")
    with pytest.raises(UserError, match="do not mix"):
        ShardSet.open([built, tmp_path / "p"])
    with pytest.raises(UserError, match="no labels for human_parts; set tasks to some of semseg"):
        ShardSet.open(built).require(["semseg", "human_parts"])
    with pytest.raises(UserError, match="no image '9999'"):
        dump_sample(built, "9999", tmp_path)
    (built / "index.json").write_text("{}")
    with pytest.raises(UserError, match="not of format 1"):
        ShardSet.open(built)


@pytest.mark.parametrize("repair", ["mended", "removed"])
def test_a_build_goes_on_after_a_bad_file_was_repaired_or_removed(tmp_path, repair, capsys):
    whole = open_layout("nyud", write_nyud(tmp_path / "whole"))
    layout = open_layout("nyud", write_nyud(tmp_path / "NYUDv2"))
    damaged = layout.image_path("0003")
    good = damaged.read_bytes()
    damaged.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=damaged.name):
        build_shards(layout, "train", tmp_path / "out", samples_per_shard=1)
    assert (tmp_path / "out/plan.json").exists()
    if repair == "mended":
        damaged.write_bytes(good)
        ids = None
    else:
        ids = [id_ for id_ in layout.ids("train") if id_ != "0003"]
    build_shards(layout, "train", tmp_path / "out", samples_per_shard=1, ids=ids)
    assert "begins again" in capsys.readouterr().out
    build_shards(whole, "train", tmp_path / "alone", samples_per_shard=1, ids=ids)
    made, expected = _bytes(tmp_path / "out"), _bytes(tmp_path / "alone")
    assert made.keys() == expected.keys() and all(made[n] == expected[n] for n in made if n.endswith(".tar"))


@pytest.mark.parametrize("name", ["my.tar.d", "my.tars", "set.tar", "a.tar/b", "x.tar.gz", "a.tar/b.tar"])
def test_folders_may_have_tar_in_their_names(built, tmp_path, name):
    shutil.copytree(built, tmp_path / name)
    whole = ShardSet.open(built)
    assert ShardSet.open(tmp_path / name).samples == whole.samples
    assert verify_shards(f"{tmp_path}/{name}/") == []
    one = ShardSet.open(f"{tmp_path}/{name}/nyud-train-000001.tar")
    assert [shard.name for shard in one.shards] == ["nyud-train-000001.tar"]
    piped = ShardSet.open(f"pipe:cat {tmp_path}/{name}/nyud-train-00000{{0..1}}.tar")
    assert [len(read_shard(shard)) for shard in piped.shards] == [2, 2]


@pytest.mark.parametrize(
    ("url", "index", "name"),
    [
        ("https://h/a.tar/train", "https://h/a.tar/train/index.json", None),
        ("https://h/x/a-0.tar?sig=p/q.tar&x=1", "https://h/x/index.json?sig=p/q.tar&x=1", "a-0.tar"),
        ("s3://b/x.tar/", "s3://b/x.tar/index.json", None),
        ("pipe:aws s3 cp s3://b.tar.x/a-0.tar -", "pipe:aws s3 cp s3://b.tar.x/index.json -", "a-0.tar"),
        ("pipe:curl 'https://h/a.tar?k=1'", "pipe:curl 'https://h/index.json?k=1'", "a.tar"),
    ],
)
def test_where_the_index_of_an_address_lies(url, index, name):
    assert _index_of(url) == (index, name)


def test_nothing_is_built_or_dumped_into_somebody_elses_folder(nyud, built, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="theirs holds what is not shards of ours .notes.txt"):
        build_shards(nyud, "train", tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs holds what is not dumped samples of ours"):
        dump_sample(built, "0001", tmp_path / "theirs")
    for id_ in ("0001", "0002", "0001"):  # several into one folder, and again
        dump_sample(built, id_, tmp_path / "out")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["notes.txt"]
