"""The trainer's own promises: scores are exact on any number of ranks, losses are weighed, a wrong start is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fgmoe_dist.config import build_config
from fgmoe_dist.data.codec import keys_of, native_sample
from fgmoe_dist.data.shardset import ShardSet, decode_sample, read_shard
from fgmoe_dist.data.stream import evaluation_samples
from fgmoe_dist.errors import UserError
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.training.batches import ShardSamples
from fgmoe_dist.training.schedule import learning_rate
from fgmoe_dist.training.scoring import run_score
from tests.ranks import run_ranks
from tests.runs import Runs, this_rank, trainer_on_rank

PASCAL = "[semseg, human_parts, sal, normals, edge]"
IMAGES = 4


# Evaluation


@pytest.fixture(scope="module")
def pascal_runs(pascal_shards, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("pascal"), pascal_shards.train, pascal_shards.val)


def evaluate_on_rank(config_file, overrides, predictions):
    """Scores of the untrained model, and the ids this rank was given."""
    from fgmoe_dist.evaluation.evaluate import evaluate
    from fgmoe_dist.evaluation.predictions import PredictionWriter

    trainer = trainer_on_rank(config_file, overrides)
    ranks, shards, transform = trainer.ranks, trainer.val_shards, trainer.eval_transform
    given = evaluation_samples(shards, trainer.config.tasks, rank=ranks.rank, world=ranks.world, transform=transform)
    scores = evaluate(trainer.model, shards, transform, ranks, observers=[PredictionWriter(predictions)])
    return scores, [sample["id"] for sample, _ in given]


def evaluate_everywhere(runs: Runs, world: int, ep_size: int) -> tuple[list[dict], Counter]:
    overrides = runs.overrides("run", dict(tasks=PASCAL, train__batch_size=20, parallel__ep_size=ep_size))
    answers = run_ranks(world, evaluate_on_rank, runs.config_file, overrides, runs.root / f"predictions{world}")
    return [scores for scores, _ in answers], Counter(id_ for _, ids in answers for id_ in ids)


@pytest.fixture(scope="module")
def alone(pascal_runs) -> dict:
    return evaluate_everywhere(pascal_runs, 1, 1)[0][0]


# Shared experts add up in another order: an 8-bit boundary probability in some thousand rounds to its neighbour.
@pytest.mark.parametrize(
    ("world", "ep_size", "tolerance"),
    [(2, 1, 1e-9), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 2, 5e-3), (5, 1, 1e-9)))],
    ids=["two", "four-sharing-experts", "more-ranks-than-images"],
)
def test_scores_are_the_same_on_any_number_of_ranks(pascal_runs, alone, world, ep_size, tolerance):
    everyone, seen = evaluate_everywhere(pascal_runs, world, ep_size)
    assert set(seen.values()) == {1} and len(seen) == IMAGES
    for scores in everyone:
        assert scores.keys() == alone.keys()
        for task in alone:
            assert scores[task] == pytest.approx(alone[task], rel=tolerance, nan_ok=True), task


def test_saved_predictions_score_the_same(pascal_runs, pascal_shards, alone):
    shards = ShardSet.open(pascal_shards.val)
    tasks = create_tasks(shards.tasks, shards)
    meters = {task.name: task.meter() for task in tasks}
    samples = [
        decode_sample(shard, id_, entries, keys_of(shards.tasks, evaluation=True))
        for shard in shards.shards
        for id_, entries in read_shard(shard).items()
    ]
    assert len(samples) == IMAGES
    for sample in map(native_sample, samples):
        for name, meter in meters.items():
            (path,) = (pascal_runs.root / "predictions1" / name).glob(f"{sample['id']}.*")
            read = np.load(path) if path.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            meter.update(read, sample)
    for name, meter in meters.items():
        assert meter.compute() == pytest.approx(alone[name], nan_ok=True), name


def test_evaluate_repeats_the_run_s_own_scores(runs):
    """`fgmoe evaluate`'s way: one process, experts whole, from the checkpoint of two ranks that shared them.

    Its tokens keep to one of the two ranks' experts, and its routers have learnt a bias.
    """
    routing = dict(experts__max_ranks_per_token=1, experts__bias_update_rate=0.05)
    runs.train("run", 2, parallel__ep_size=2, train__steps=1, train__pictures=2, **routing)
    own = json.loads((runs.folder("run") / "eval/1.json").read_text())
    (again,) = run_ranks(1, evaluate_verb, runs.folder("run"), runs.root / "again.json")
    for task in own:
        assert again[task] == pytest.approx(own[task], rel=1e-5), task
    assert len(list((runs.folder("run") / "pictures/1").glob("*.png"))) == 2 + 1  # and the experts' load


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [dict(experts__backend="deepspeed"), dict(experts__backend="fairscale", experts__top_k=2, experts__count=1)],
    ids=["deepspeed", "fairscale"],
)
def test_what_other_libraries_layers_learnt_the_fused_ones_compute(runs, backend):
    # With two experts and both chosen, fairscale drops no token and draws no second expert.
    alike = dict(tasks="[semseg, normals]", train__steps=2, experts__renormalise="true", parallel__ep_size=2)
    runs.train("run", 2, **alike, **backend)
    own = json.loads((runs.folder("run") / "eval/2.json").read_text())
    (again,) = run_ranks(1, evaluate_verb, runs.folder("run"), runs.root / "again.json")
    for task in own:
        assert again[task] == pytest.approx(own[task], rel=1e-3), task


def evaluate_verb(checkpoint, path):
    """`fgmoe evaluate` without its own process group: the rank has one already."""
    import argparse
    from contextlib import contextmanager

    from fgmoe_dist.verbs import evaluate as verb

    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.process_group = contextmanager(lambda: iter([this_rank()]))
    verb.run(parser.parse_args(["--checkpoint", str(checkpoint), "--json", str(path), "--workers", "0"]))
    return json.loads(path.read_text())


# Steps


def two_steps(config_file, overrides):
    trainer = trainer_on_rank(config_file, overrides)
    reports = [trainer.train_step() for _ in range(2)]
    return [
        ({name: loss.item() for name, loss in report.losses.items()}, report.counts["load"].tolist(), report.lr)
        for report in reports
    ]


def test_the_total_weighs_tasks_and_balance(runs):
    changes = dict(
        experts__balance_weight=0.5, experts__z_weight=0.25, experts__device_balance_weight=0.125, experts__groups=2,
        train__warmup_steps=4, train__micro_batch_size=2,
    )  # fmt: skip
    (steps,) = run_ranks(1, two_steps, runs.config_file, runs.overrides("run", changes))
    for losses, load, _ in steps:
        total = losses["semseg"] + losses["depth"] + 10 * losses["normals"] + 50 * losses["edge"]
        balance = 0.5 * losses["experts/balance_loss"] + 0.25 * losses["experts/z_loss"]
        balance += 0.125 * losses["experts/device_balance_loss"]
        assert losses["total"] == pytest.approx(total + balance, rel=1e-5)
        # Every token of 4 images on 14 x 18 places goes to 3 experts, in both blocks for each task.
        assert np.sum(load, axis=2).tolist() == [[4 * 14 * 18 * 3] * 4] * 2
    assert [lr for *_, lr in steps] == pytest.approx([1e-3 / 4, 1e-3 / 2 * 0.75**0.9])


def biases_after_a_step(config_file, overrides):
    trainer = trainer_on_rank(config_file, overrides)
    load = trainer.train_step().counts["load"]
    biases = [value for name, value in trainer.engine.module.named_buffers() if name.endswith("bias_TE")]
    return [(str(bias.dtype), bias.tolist()) for bias in biases], load.tolist()


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_router_biases_follow_the_load_of_all_ranks_and_micro_batches(runs, precision):
    changes = dict(experts__bias_update_rate=0.5, parallel__ep_size=2, train__precision=precision)
    first, second = run_ranks(2, biases_after_a_step, runs.config_file, runs.overrides("run", changes))
    assert first == second
    biases, load = first
    assert np.sum(load) == 4 * 14 * 18 * 3 * 4 * 2, "images, tokens, slots, tasks, blocks"
    for (dtype, bias), load_TE in zip(biases, np.array(load)):
        assert dtype == "torch.float32"
        assert np.array_equal(bias, 0.5 * np.sign(load_TE.mean(1, keepdims=True) - load_TE))


def diverge(config_file, overrides) -> list[str]:
    trainer = trainer_on_rank(config_file, overrides)
    said = []
    if trainer.ranks.rank == 1:  # one rank alone is fed something bad
        trainer.model.decoder.heads[0].predict.bias.data.fill_(float("nan"))
    try:
        trainer.train_step()
    except UserError as error:
        said.append(str(error))
    return said


@pytest.mark.parametrize("zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1)), 2])
def test_a_run_that_diverges_ends_on_every_rank(runs, zero_stage):
    answers = run_ranks(2, diverge, runs.config_file, runs.overrides("run", dict(parallel__zero_stage=zero_stage)))
    assert all(said and "step 1: the gradient is not finite" in said[0] for said in answers), answers


def test_the_learning_rate_falls_as_a_power():
    train = build_config({"train": {"steps": 100, "lr": 2.0, "poly_power": 0.5}}).train
    assert [learning_rate(train, step) for step in (0, 75, 100)] == pytest.approx([2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(data__train="/nowhere"), "/nowhere"),
        (dict(tasks="[semseg, sal]"), "no labels for sal"),
        (dict(encoder__name="vit_tinny"), "vit_tinny"),
        (dict(parallel__ep_size=2), "does not divide the 1 rank"),
        (dict(data__image_size="[112, 150]"), "data.image_size"),
    ],
)
def test_a_wrong_start_is_the_user_s_error(runs, changes, said):
    with pytest.raises(AssertionError, match=f"UserError: .*{said}"):
        run_ranks(1, two_steps, runs.config_file, runs.overrides("run", changes))


def test_other_classes_are_refused(runs, pascal_shards):
    changes = dict(data__val=pascal_shards.val, tasks="[semseg]")
    with pytest.raises(AssertionError, match="UserError: .*other classes"):
        run_ranks(1, two_steps, runs.config_file, runs.overrides("run", changes))


def test_a_validation_image_that_does_not_fit_is_found_before_the_first_step(runs):
    config = runs.config(data__image_size="[112, 128]")
    samples = ShardSamples(config)
    for largest in (samples.val.largest, None):  # as an index says that was built before it told sizes
        samples.val = replace(samples.val, largest=largest)
        with pytest.raises(
            UserError, match="val shards have images of up to 112x140, larger than data.image_size 112x128"
        ):
            samples.check(config, None)


# Figures


def test_a_better_run_scores_higher(pascal_shards):
    shards = ShardSet.open(pascal_shards.val)
    tasks = create_tasks(["semseg", "normals"], shards)
    base = {"semseg": {"mIoU": 40.0}, "normals": {"mean": 20.0}}
    better = [{**base, "semseg": {"mIoU": 41.0}}, {**base, "normals": {"mean": 19.0}}]
    assert all(run_score(tasks, scores) > run_score(tasks, base) for scores in better)
