"""Cached features: the same views, and the losses that the encoder itself would have given, to float16."""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fgmoe_dist.config import load_config
from fgmoe_dist.data.augment import FeatureTransform, TrainTransform
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards, verify_shards
from fgmoe_dist.data.shardset import ShardSet, decode_sample, read_shard
from fgmoe_dist.data.stream import train_batches
from fgmoe_dist.encoders.features import build_features, check_cache, made_with
from fgmoe_dist.errors import UserError
from fgmoe_dist.ranks import Ranks
from tests.archives import save
from tests.ranks import run_ranks
from tests.runs import Runs, this_rank, trainer_on_rank

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
VIEWS = 2


@pytest.fixture(scope="module")
def home(nyud_shards, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), nyud_shards.train, nyud_shards.val)


@pytest.fixture(scope="module")
def cache(home):
    build_features(home.config(), home.root / "features", VIEWS, ALONE)
    return home.root / "features"


def _losses_on_rank(config_file, runs, steps):
    """Losses of each step of several runs, given as (overrides, whether to round the encoder's features)."""
    answers = []
    for overrides, as_half in runs:
        trainer = trainer_on_rank(config_file, overrides)
        if as_half:
            trainer.model.encoder.forward = functools.partial(_as_cached, trainer.model.encoder.forward)
        answers.append(
            [{name: loss.item() for name, loss in trainer.train_step().losses.items()} for _ in range(steps)]
        )
    return answers


def _as_cached(encode, image_B3HW):
    """Image by image, for a batch rounds otherwise, and as float16."""
    return [torch.cat(level).half() for level in zip(*(encode(image) for image in image_B3HW.split(1)))]


def test_losses_are_those_without_the_cache(home, cache):
    """8 images, 4 a step: three epochs in five steps, so that the first view comes round again."""
    runs = [({"data__train": cache}, False), ({"data__views": VIEWS}, True), ({"data__views": VIEWS}, False)]
    runs += [({**changes, "tasks": "[depth]"}, as_half) for changes, as_half in runs[:2]]
    runs = [(home.overrides("run", {"train__steps": 5, **changes}), as_half) for changes, as_half in runs]
    cached, rounded, exact, cached_depth, rounded_depth = run_ranks(1, _losses_on_rank, home.config_file, runs, 5)[0]
    assert cached == rounded and cached_depth == rounded_depth
    for one, other in zip(cached, exact):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_of_features_is_that_of_images_with_fixed_views(home, cache, workers):
    """Same order, same labels bit for bit, whoever reads; without fixed views the labels are others."""
    config = home.config()
    options = {"batch_size": 4, "micro_batch_size": 2, "rank": 0, "world": 1, "seed": 0, "workers": workers}
    features, images = ShardSet.open(cache), ShardSet.open(config.data.train)
    cached = FeatureTransform(config.data.image_size, config.tasks, features.cache.levels_Chw)
    plain = TrainTransform(config.data.image_size, (0.5,) * 3, (0.5,) * 3, config.tasks)
    one = train_batches(features, config.tasks, transform=cached, **options)
    other = train_batches(images, config.tasks, transform=plain, views=VIEWS, **options)
    for batch, truth in itertools.islice(zip(one, other), 10):
        assert batch["id"] == truth["id"] and "image" not in batch
        assert [tuple(level.shape) for level in batch["features"]] == [(2, 192, 7, 9)] * 4
        for task in config.tasks:
            torch.testing.assert_close(batch[task], truth[task], rtol=0, atol=0, equal_nan=True)
    fresh = next(train_batches(images, config.tasks, transform=plain, **options))
    assert not torch.equal(
        fresh["depth"], next(train_batches(features, config.tasks, transform=cached, **options))["depth"]
    )


def test_a_cache_is_a_whole_set_of_views(home, cache):
    source, features = ShardSet.open(home.config().data.train), ShardSet.open(cache)
    assert features.samples == source.samples and features.tasks == source.tasks
    assert [[shard.ids for shard in view] for view in features.cache.views] == [
        [shard.ids for shard in source.shards]
    ] * VIEWS
    assert verify_shards(cache) == []
    # ViT-Ti: four levels of 192 channels, one vector a patch of 16
    assert features.cache.levels_Chw == ((192, 7, 9),) * 4
    one, other = (_sample(view[0]) for view in features.cache.views)
    assert one["features"].dtype == np.float16 and one["features"].shape == (4 * 192 * 7 * 9,)
    assert not np.array_equal(one["features"], other["features"])


def test_labels_of_any_kind_are_cached(home, tmp_path):
    """Cached and uncached streams of the same views agree bit for bit, whatever the data set defines."""
    for folder in ("images", "tint", "species", "heat"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for id_ in "abcd":
        save(tmp_path / f"images/{id_}.png", rng.integers(0, 256, (90, 110, 3)))
        save(tmp_path / f"tint/{id_}.png", rng.integers(0, 256, (90, 110, 3)))
        Image.fromarray(rng.integers(0, 400, (90, 110)).astype(np.uint16)).save(tmp_path / f"species/{id_}.png")
        np.save(tmp_path / f"heat/{id_}.npy", rng.normal(size=(90, 110)))
    tasks = {
        "tint": {"kind": "vectors", "file": "tint/{id}.png"},
        "species": {"kind": "classes", "file": "species/{id}.png", "classes": [f"s{n}" for n in range(400)]},
        "heat": {"kind": "scalar", "file": "heat/{id}.npy", "scales": "proportional"},
    }
    (tmp_path / "ids.txt").write_text("a b c d")
    description = {"name": "own", "image": {"file": "images/{id}.png"}, "splits": {"train": "ids.txt"}, "tasks": tasks}
    (tmp_path / "own.yaml").write_text(json.dumps(description))
    images = build_shards(open_layout(tmp_path / "own.yaml"), "train", tmp_path / "train")
    config = home.config(data__train=tmp_path / "train")
    features = build_features(config, tmp_path / "features", VIEWS, ALONE)
    assert features.definitions == images.definitions != {} and verify_shards(tmp_path / "features") == []
    cached = FeatureTransform(config.data.image_size, tasks, features.cache.levels_Chw, features.labels)
    plain = TrainTransform(config.data.image_size, (0.5,) * 3, (0.5,) * 3, tasks, labels=images.labels)
    options = {"batch_size": 4, "micro_batch_size": 4, "rank": 0, "world": 1, "seed": 0}
    one = train_batches(features, list(tasks), transform=cached, **options)
    other = train_batches(images, list(tasks), transform=plain, views=VIEWS, **options)
    for batch, truth in itertools.islice(zip(one, other), 4):
        assert batch["id"] == truth["id"]
        for task in tasks:
            torch.testing.assert_close(batch[task], truth[task], rtol=0, atol=0, equal_nan=True)


def _sample(shard):
    id_, entries = next(iter(read_shard(shard).items()))
    return decode_sample(shard, id_, entries, tuple(entries))


def _build_on_rank(config_file, overrides, out):
    build_features(load_config(config_file, overrides), out, VIEWS, this_rank())


def test_ranks_share_the_work(home, cache, tmp_path):
    run_ranks(2, _build_on_rank, home.config_file, home.overrides("run", {}), tmp_path / "shared")
    files = [path.relative_to(cache) for path in cache.rglob("*.*") if path.is_file()]
    assert len(files) == 1 + VIEWS * 5
    assert all((tmp_path / "shared" / path).read_bytes() == (cache / path).read_bytes() for path in files)


def test_an_interrupted_cache_goes_on_and_a_finished_one_is_kept(home, cache, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    (copy / "index.json").rename(copy / "plan.json")  # as before the end
    (copy / "plan.json").write_text(json.dumps(json.loads((copy / "plan.json").read_text())["source"]))
    lost = copy / "view-01" / ShardSet.open(cache).shards[1].name
    truth = lost.read_bytes()
    lost.unlink()
    build_features(home.config(), copy, VIEWS, ALONE)
    assert lost.read_bytes() == truth and json.loads((copy / "index.json").read_text()) == json.loads(
        (cache / "index.json").read_text()
    )
    before = lost.stat().st_mtime_ns
    build_features(home.config(), copy, VIEWS, ALONE)
    assert lost.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds other shards"):
        build_features(home.config(run__seed=1), copy, VIEWS, ALONE)


class _Encoder:
    """What `made_with` asks of an encoder."""

    source, checksum, taps = "none", "ab12", [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("changes", "taps", "checksum", "message"),
    [
        ({"encoder__name": "vit_small_patch16_224"}, None, None, "encoder.name = vit_tiny_patch16_224, this"),
        ({}, [1, 2], None, r"encoder.taps = \[2, 5, 8, 11\], this run has \[1, 2\]"),
        ({}, None, "cd34", "encoder.weights = none, sha256 ab12, this run has none, sha256 cd34"),
        ({"data__image_size": "[112, 128]"}, None, None, r"data.image_size = \[112, 144\], this run has \[112, 128\]"),
        ({"data__scale_range": "[1, 2]"}, None, None, r"data.scale_range = \[0.5, 2.0\]"),
        ({"data__augment": "false"}, None, None, "data.augment = True, this run has False"),
        ({"data__views": 3}, None, None, "data.views is 3, but .* holds 2 views"),
    ],
)  # fmt: skip
def test_features_of_another_encoder_are_refused(home, cache, changes, taps, checksum, message):
    features, val = ShardSet.open(cache), ShardSet.open(home.config().data.val)
    features.cache.made_with.update(json.loads(json.dumps(made_with(home.config(), _Encoder()))))
    encoder = _Encoder()
    check_cache(features, val, home.config(), encoder)
    encoder.taps, encoder.checksum = taps or encoder.taps, checksum or encoder.checksum
    with pytest.raises(UserError, match=message) as caught:
        check_cache(features, val, home.config(**changes), encoder)
    assert "\n" not in str(caught.value)


def test_features_in_the_wrong_place_are_named(home, cache, tmp_path):
    features, images = ShardSet.open(cache), ShardSet.open(home.config().data.val)
    with pytest.raises(UserError, match="data.val .* holds cached features"):
        check_cache(images, features, home.config(), _Encoder())
    with pytest.raises(UserError, match="holds features already"):
        build_features(home.config(data__train=cache), tmp_path / "again", VIEWS, ALONE)
    with pytest.raises(UserError, match="give the folder, not single shards"):
        ShardSet.open(f"{cache}/nyud-train-000000.tar")
    with pytest.raises(UserError, match="do not mix"):
        ShardSet.open([cache, home.config().data.train])
    with pytest.raises(UserError, match="give at least 1"):
        build_features(home.config(), tmp_path / "none", 0, ALONE)
