"""The order of the data, for any number of ranks and workers, against a naive retelling of the contract."""

import functools
import http.server
import itertools
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgmoe_dist.data.augment import EvalTransform, TrainTransform
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import Order, evaluation_samples, train_batches
from fgmoe_dist.errors import UserError
from tests.archives import write_nyud
from tests.damage import add, drop, npy, replace, rewrite

TASKS = ("semseg", "depth", "normals", "edge")
PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TRAIN = TrainTransform((8, 8), tasks=TASKS, **PLAIN)
EVALUATION = EvalTransform((12, 16), **PLAIN)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return open_layout("nyud", write_nyud(tmp_path_factory.mktemp("a") / "NYUDv2", train=23, val=11))


@pytest.fixture(scope="module")
def train(layout, tmp_path_factory):
    return build_shards(layout, "train", tmp_path_factory.mktemp("t") / "train", samples_per_shard=5)


@pytest.fixture(scope="module")
def val(layout, tmp_path_factory):
    return build_shards(layout, "val", tmp_path_factory.mktemp("t") / "val", samples_per_shard=3)


def _steps(train, steps, *, world=1, batch_size=4, micro_batch_size=2, start_step=0, seed=7, **options):
    """[step][position in the global batch] -> (id, image), put together again from all ranks."""
    ranks = []
    for rank in range(world):
        batches = train_batches(
            train,
            TASKS,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world=world,
            seed=seed,
            start_step=start_step,
            transform=TRAIN,
            **options,
        )
        count = steps * batch_size // world // micro_batch_size
        seen = [pair for batch in itertools.islice(batches, count) for pair in zip(batch["id"], batch["image"])]
        batches.close()
        ranks.append(seen)
    share = batch_size // world
    return [[pair for seen in ranks for pair in seen[step * share : (step + 1) * share]] for step in range(steps)]


def _same(one, other):
    flat = [list(itertools.chain(*steps)) for steps in (one, other)]
    assert [id_ for id_, _ in flat[0]] == [id_ for id_, _ in flat[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*flat))


def test_a_batch_is_as_the_contract_says(train):
    batch = next(
        train_batches(train, TASKS, batch_size=3, micro_batch_size=3, rank=0, world=1, seed=0, transform=TRAIN)
    )
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items() if key != "id"}
    assert shapes == {
        "image": ((3, 3, 8, 8), torch.float32),
        "semseg": ((3, 8, 8), torch.int64),
        "depth": ((3, 8, 8), torch.float32),
        "normals": ((3, 3, 8, 8), torch.float32),
        "edge": ((3, 8, 8), torch.int64),
    }
    assert len(batch["id"]) == 3


@pytest.mark.parametrize(("world", "micro_batch_size"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_do_not_change_the_data(train, world, micro_batch_size):
    _same(_steps(train, 14), _steps(train, 14, world=world, micro_batch_size=micro_batch_size))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_data(train, workers):
    _same(_steps(train, 14), _steps(train, 14, workers=workers, micro_batch_size=1))


@pytest.mark.parametrize("start_step", [1, 5, 13])
def test_a_resumed_run_sees_what_the_whole_run_would_have(train, start_step):
    _same(_steps(train, 16)[start_step:], _steps(train, 16 - start_step, start_step=start_step, world=2))


def test_an_epoch_holds_no_sample_twice_and_another_epoch_or_seed_is_another_order(train):
    ids = [[id_ for id_, _ in step] for step in _steps(train, 10)]
    first, second = (list(itertools.chain(*ids[i : i + 5])) for i in (0, 5))  # 23 samples, 4 lanes: 5 steps an epoch
    assert len(set(first)) == len(set(second)) == 20
    assert first != second and set(first) != set(second)
    assert first != [id_ for step in _steps(train, 5, seed=8) for id_, _ in step]


def test_the_same_sample_is_augmented_anew_each_time(train):
    pictures = {}
    for step in _steps(train, 12):
        for id_, image in step:
            pictures.setdefault(id_, []).append(image)
    assert all(not torch.equal(a, b) for images in pictures.values() for a, b in itertools.combinations(images, 2))


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 9), seed=st.integers(0, 1000), epoch=st.integers(0, 3))
def test_every_epoch_deals_the_set_evenly(sizes, batch_size, seed, epoch):
    order = Order(tuple(sizes), batch_size, seed)
    assert order.lanes % batch_size == 0
    per_epoch = order.lanes * order.lane_length
    assert per_epoch <= order.passes * sum(sizes) < per_epoch + order.lanes
    places = [order.locate(p) for p in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
    assert {place[0] for place in places} == {epoch}
    assert len(set(places)) == per_epoch
    assert [lane for _, lane, _ in places[: order.lanes]] == list(range(order.lanes))
    turns = order.shard_order(epoch).tolist()
    assert all(turns.count(shard) == order.passes for shard in range(len(sizes)))
    assert sorted(order.within(epoch, 0, turns[0])) == list(range(sizes[turns[0]]))


def test_the_stream_follows_the_contract(train):
    """The order told anew: shuffle, concatenate, cut into lanes, deal the lanes in turn."""
    order = Order((5, 5, 5, 5, 3), 4, 7)
    expected = []
    for epoch in range(2):
        line = []
        for turn, shard in enumerate(order.shard_order(epoch)):
            ids = train.shards[shard].ids
            line += [ids[i] for i in order.within(epoch, turn, shard)]
        lanes = [line[lane * 5 : lane * 5 + 5] for lane in range(4)]
        expected += [lanes[lane][place] for place in range(5) for lane in range(4)]
    assert [id_ for step in _steps(train, 10) for id_, _ in step] == expected


def test_a_set_smaller_than_a_batch_is_enough(layout, tmp_path):
    small = build_shards(layout, "train", tmp_path / "s", ids=["0001", "0002", "0003"])
    for step in _steps(small, 6, batch_size=8, world=4, micro_batch_size=1):
        counts = np.unique([id_ for id_, _ in step], return_counts=True)[1]
        assert sorted(counts) == [2, 3, 3]  # three shuffles of three samples, less one


def test_sixteen_ranks_over_five_shards_all_get_their_share(train):
    assert len(train.shards) == 5
    _same(_steps(train, 4, batch_size=16), _steps(train, 4, batch_size=16, world=16, micro_batch_size=1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (16, 0), (2, 3)])
def test_evaluation_reads_each_sample_once(layout, val, world, workers):
    ids = []
    for rank in range(world):
        for sample, image in evaluation_samples(
            val, TASKS, rank=rank, world=world, workers=workers, transform=EVALUATION
        ):
            ids.append(sample["id"])
            assert image.shape == (3, 12, 16)
            if world == 1:
                truth = layout.read(sample["id"])
                assert sample.keys() == truth.keys()
                for key in truth.keys() - {"id"}:
                    np.testing.assert_array_equal(sample[key], truth[key])
                    assert sample[key].dtype == truth[key].dtype
    assert sorted(ids) == layout.ids("val")


def test_only_what_the_tasks_need_is_read(val):
    sample, _ = next(evaluation_samples(val, ("depth",), transform=EVALUATION))
    assert sample.keys() == {"id", "image", "depth"}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_sixteen_reader_processes_over_five_shards(layout, train):
    """Four ranks of four loader processes each, all reading at once and in step, as training does."""
    ranks = [
        train_batches(
            train, TASKS, batch_size=8, micro_batch_size=1, rank=rank, world=4, seed=7, workers=4, transform=TRAIN
        )
        for rank in range(4)
    ]
    steps = []
    for _ in range(12):  # two epochs and more
        batches = [next(batches) for batches in ranks for _ in range(2)]
        steps.append([(batch["id"][0], batch["image"][0]) for batch in batches])
    _same(_steps(train, 12, batch_size=8), steps)
    for batches in ranks:
        batches.close()
    parts = [
        evaluation_samples(train, ("depth",), rank=rank, world=4, workers=4, transform=EVALUATION) for rank in range(4)
    ]
    assert sorted(sample["id"] for part in parts for sample, _ in part) == layout.ids("train")


def test_a_set_behind_a_command_is_streamed(train):
    folder = Path(train.shards[0].url).parent
    piped = ShardSet.open(f"pipe:cat {folder}/nyud-train-{{000000..000004}}.tar")
    _same(_steps(piped, 6), _steps(train, 6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_named_in_one_line(layout, tmp_path, workers):
    shardset = build_shards(layout, "val", tmp_path / "val")
    path = tmp_path / "val" / "nyud-val-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"nyud-val-000001\.tar .*copy it again") as caught:
        list(evaluation_samples(shardset, TASKS, workers=workers, transform=EVALUATION))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nyud-val-000001\.tar"):
        _steps(shardset, 20, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_passed_over_up_to_the_limit(layout, tmp_path, workers, caplog):
    shardset = build_shards(layout, "train", tmp_path / "train", samples_per_shard=4)
    lost = set(shardset.shards[2].ids)
    (tmp_path / "train" / "nyud-train-000002.tar").unlink()
    options = {"workers": workers, "max_bad_samples": len(lost)}
    ids = [sample["id"] for sample, _ in evaluation_samples(shardset, TASKS, transform=EVALUATION, **options)]
    assert sorted(ids) == sorted(set(layout.ids("train")) - lost)
    assert "passed over (4 of at most 4): cannot read shard" in caplog.text
    one, two = (_steps(shardset, 10, world=world, **options) for world in (1, 2))
    _same(one, two)
    assert not lost & {id_ for step in one for id_, _ in step}
    options["max_bad_samples"] -= 1
    with pytest.raises(UserError, match="cannot read shard"):
        _steps(shardset, 10, **options)


def _cut_off(folder):
    path = folder / "nyud-train-000000.tar"
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("damage", "lost", "message"),
    [
        (_cut_off, 2, r"nyud-train-000000\.tar is .*copy it again"),
        (lambda folder: rewrite(folder, replace("image", b"")), 1, "image is 0 bytes long"),
        (lambda folder: rewrite(folder, drop("image")), 1, "it has no image"),
        (
            lambda folder: rewrite(folder, replace("depth", npy(np.zeros((3, 4), np.float32)))),
            1,
            "depth is 3x4 but its image is 12x16",
        ),
        (lambda folder: rewrite(folder, add("../../evil.image.npy")), 2, r"'\.\./\.\./evil\.image\.npy', not ID"),
    ],
    ids=["truncated tar", "0-byte image", "no image", "wrong size", "traversal"],
)
def test_each_kind_of_damage_is_named_and_counted(layout, tmp_path, caplog, damage, lost, message):
    build_shards(layout, "train", tmp_path, ids=[f"{n:04d}" for n in range(1, 9)], samples_per_shard=2)
    damage(tmp_path)
    shardset = ShardSet.open(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        list(evaluation_samples(shardset, TASKS, transform=EVALUATION, max_bad_samples=lost - 1))
    assert "\n" not in str(caught.value) and "nyud-train-000000.tar" in str(caught.value)
    ids = [s["id"] for s, _ in evaluation_samples(shardset, TASKS, transform=EVALUATION, max_bad_samples=lost)]
    assert len(ids) == 8 - lost and f"passed over ({lost} of at most {lost})" in caplog.text
    with pytest.raises(UserError, match=message):
        _steps(shardset, 8)
    assert {id_ for step in _steps(shardset, 8, max_bad_samples=lost) for id_, _ in step} == set(ids)


def test_a_sample_without_one_tasks_label_is_no_damage(layout, tmp_path):
    build_shards(layout, "train", tmp_path, ids=["0001", "0002"], samples_per_shard=2)
    rewrite(tmp_path, drop("depth"))
    shardset = ShardSet.open(tmp_path)
    lacking = shardset.shards[0].ids[0]
    for sample, _ in evaluation_samples(shardset, TASKS, transform=EVALUATION):
        assert ("depth" in sample) == (sample["id"] != lacking)
    batch = next(
        train_batches(shardset, TASKS, batch_size=2, micro_batch_size=2, rank=0, world=1, seed=0, transform=TRAIN)
    )
    for id_, depth, semseg in zip(batch["id"], batch["depth"], batch["semseg"]):
        assert (depth == 0).all() if id_ == lacking else (depth > 0).any()
        assert (semseg != 255).any()


def test_a_set_of_bad_samples_only_stops(layout, tmp_path):
    shardset = build_shards(layout, "val", tmp_path / "val")
    for path in (tmp_path / "val").glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"none of 8 samples in a row can be read, the last: cannot read shard"):
        _steps(shardset, 1, max_bad_samples=1000)


@pytest.mark.skipif(shutil.which("curl") is None, reason="http goes through curl")
def test_a_set_behind_http_is_read(layout, val):
    folder = Path(val.shards[0].url).parent
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = ShardSet.open(f"http://127.0.0.1:{server.server_port}/")
        ids = [sample["id"] for sample, _ in evaluation_samples(remote, ("depth",), transform=EVALUATION)]
        with pytest.raises(UserError, match="cannot read shard index http"):
            ShardSet.open(f"http://127.0.0.1:{server.server_port}/nothing")
        server.shutdown()
    assert ids == layout.ids("val")


def test_a_missing_shard_is_named(layout, tmp_path):
    shardset = build_shards(layout, "val", tmp_path / "val")
    (tmp_path / "val" / "nyud-val-000000.tar").unlink()
    with pytest.raises(UserError, match=r"cannot read shard .*nyud-val-000000\.tar"):
        list(evaluation_samples(shardset, TASKS, transform=EVALUATION))


def test_sizes_that_do_not_divide_and_tasks_without_labels_are_named(train):
    options = {"rank": 0, "seed": 0, "transform": TRAIN}
    with pytest.raises(AssertionError, match="6 images over 2 ranks x 2"):
        train_batches(train, TASKS, batch_size=6, micro_batch_size=2, world=2, **options)
    with pytest.raises(UserError, match="no labels for sal"):
        train_batches(train, ("sal",), batch_size=2, micro_batch_size=2, world=1, **options)
    with pytest.raises(UserError, match="no labels for sal"):
        evaluation_samples(train, ("sal",), transform=EVALUATION)
