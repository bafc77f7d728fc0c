"""The plug-ins of examples/plugins, one for each seam, train on two ranks through the real trainer."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fgmoe_dist import plugins
from fgmoe_dist.checkpoints.folder import find_checkpoint, read_state
from fgmoe_dist.data.augment import TrainTransform
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.data.shards import build_shards, verify_shards
from fgmoe_dist.data.shardset import ShardSet
from fgmoe_dist.data.stream import train_batches
from fgmoe_dist.errors import UserError
from fgmoe_dist.evaluation.scorer import Scorer
from fgmoe_dist.experts.kernels import find_kernel
from fgmoe_dist.experts.kinds import KINDS as EXPERT_KINDS
from fgmoe_dist.labels import KINDS
from fgmoe_dist.tasks import KINDS as TASK_KINDS
from fgmoe_dist.tracking.run_folder import RunFolder
from tests.archives import save
from tests.plugged import EXAMPLES, example, plugged
from tests.runs import ROOT, Runs, environment, losses

HW = (90, 110)
WORKSHOP = ("warmth", "angle")
LINEAR = {
    "tasks": "[warmth, slope, material]", "decoder__kind": "linear", "decoder__channels": 16,
    "train__weighting__kind": "lottery", "train__loss_weights": "{warmth: 0.1}",
    "train__steps": 2, "train__poly_power": 0,
    "parallel__engine": "averaging", "tracking__sinks": "[csv]",
}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Runs:
    """Shards of six images, described by examples/plugins/workshop.yaml."""
    root = tmp_path_factory.mktemp("workshop")
    rng = np.random.default_rng(0)
    for folder in ("images", "material", "albedo", "disparity", "warmth", "slope"):
        (root / folder).mkdir()
    for id_ in "abcdef":
        save(root / f"images/{id_}.png", rng.integers(0, 256, (*HW, 3)))
        save(root / f"material/{id_}.png", rng.integers(0, 3, HW))
        save(root / f"albedo/{id_}.png", rng.integers(0, 256, (*HW, 3)))
        save(root / f"disparity/{id_}.png", rng.integers(0, 256, HW))
        np.save(root / f"warmth/{id_}.npy", np.where(rng.random(HW) < 0.1, np.nan, rng.normal(300, 5, HW)))
        np.save(root / f"slope/{id_}.npy", np.where(rng.random(HW) < 0.1, np.nan, 180 * rng.random(HW)))
    (root / "train.txt").write_text("a b c d")
    (root / "val.txt").write_text("e f")
    with plugged(*WORKSHOP):
        for split in ("train", "val"):
            layout = open_layout(EXAMPLES / "workshop.yaml", root)
            build_shards(layout, split, root / split, samples_per_shard=2)
    return Runs(root, root / "train", root / "val")


@pytest.fixture
def with_linear():
    with plugged(*WORKSHOP, "linear", "lottery", "averaging", "csv_sink"):
        yield


@pytest.fixture(scope="module")
def linear_run(workshop) -> list[dict]:
    """A task, a kind of label, a decoder without experts, a weighting method, an engine and a sink, on two ranks."""
    with plugged(*WORKSHOP, "linear", "lottery", "averaging", "csv_sink"):
        return workshop.train("linear", 2, **LINEAR)


def test_what_lies_in_the_shards_of_a_described_data_set(workshop):
    with plugged(*WORKSHOP):
        assert verify_shards(workshop.root / "train") == []
    index = json.loads((workshop.root / "train/index.json").read_text())
    assert set(index["tasks"]) == {"material", "albedo", "disparity", "warmth", "slope"}
    assert index["definitions"].keys() == {"material", "albedo", "disparity", "slope"}, "a task of ours needs none"
    assert index["definitions"]["slope"] == {"kind": "angle"}
    with pytest.raises(UserError, match="index.json: task 'warmth' is none of .*--plugin"):
        verify_shards(workshop.root / "train")


def test_loader_processes_have_the_plug_ins_of_this_one(workshop):
    """Which the forkserver knows nothing of: a label's class is found, and what it looks up is there."""
    with plugged(*WORKSHOP):
        shards = ShardSet.open(workshop.root / "train")
        transform = TrainTransform((112, 128), (0.5,) * 3, (0.5,) * 3, ["slope", "warmth"], labels=shards.labels)
        options = {"batch_size": 2, "micro_batch_size": 2, "rank": 0, "world": 1, "seed": 0, "transform": transform}
        here, there = (
            next(train_batches(shards, ["slope", "warmth"], workers=workers, **options)) for workers in (0, 1)
        )
    for task in ("slope", "warmth"):
        np.testing.assert_array_equal(here[task], there[task])


def test_a_flip_turns_an_angle_around_and_179_is_next_to_0():
    with plugged("angle"):
        label, meter = KINDS["angle"]("degrees"), TASK_KINDS["angle"]("slope").meter()
        np.testing.assert_array_equal(label.mirror(np.float32([0, 30, 179, np.nan])), np.float32([0, 150, 1, np.nan]))
        truth_HW = np.float32([[179, 90, np.nan]])
        with Scorer({"slope": meter}, {}, workers=1) as scorer:
            scorer.update({"id": "a", "slope": truth_HW}, {"slope": np.float32([[0, 80, 3]])})
    assert meter.compute() == {"mean": (1 + 10) / 2}


def test_a_run_of_six_plug_ins(workshop, linear_run):
    folder = RunFolder(workshop.folder("linear"))
    assert len(linear_run) == 2
    for line in linear_run:
        weights = [line[f"weight/{task}"] for task in ("warmth", "slope", "material")]
        total = sum(
            w * c * line[f"loss/{t}"] for w, (t, c) in zip(weights, (("warmth", 0.1), ("slope", 1), ("material", 1)))
        )
        assert sum(weights) == pytest.approx(3) and line["loss"] == pytest.approx(total, rel=1e-5)
        assert not any(name.startswith("experts") for name in line)
    assert linear_run[0]["weight/slope"] != linear_run[1]["weight/slope"]
    with open(folder.path / "metrics.csv") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [line["loss"] for line in linear_run]
    scores = folder.evaluation(2)
    assert {task: next(iter(values)) for task, values in scores.items()} == {
        "warmth": "mae", "slope": "mean", "material": "mIoU"
    }  # fmt: skip
    assert 0 < scores["slope"]["mean"] < 90
    told = folder.about()["tags"]["plugins"].split(", ")
    assert [plugin.split()[0] for plugin in told] == [*WORKSHOP, "linear", "lottery", "averaging", "csv_sink"]
    assert "\nexperts:" not in folder.config_file.read_text()


def test_its_engine_trains_as_deepspeed_does(workshop, linear_run, with_linear):
    other = workshop.train("deepspeed", 2, **{**LINEAR, "parallel__engine": "deepspeed", "tracking__sinks": "[]"})
    assert losses(other) == pytest.approx(losses(linear_run), rel=1e-5)
    assert [line["grad_norm"] for line in other] == pytest.approx([line["grad_norm"] for line in linear_run], rel=1e-5)


def test_its_checkpoint_goes_on_with_another_number_of_ranks(workshop, linear_run, with_linear):
    three = {**LINEAR, "train__steps": 3}
    unbroken = workshop.train("unbroken", 1, **three)
    resumed = workshop.train("resumed", 1, resume=str(workshop.folder("linear")), **three)
    assert [line["step"] for line in resumed] == [3]
    assert losses(resumed) == pytest.approx(losses(unbroken, after=2), rel=1e-4)


def test_its_model_is_planned(workshop, with_linear, capsys):
    from fgmoe_dist.cli import main
    from fgmoe_dist.decoders.base import parameter_counts
    from fgmoe_dist.model import create_model
    from fgmoe_dist.planning.trace import AnyDataset

    config = workshop.config("plan", **LINEAR)
    words = [word for pair in workshop.overrides("plan", LINEAR) for word in ("--set", pair)]
    figures = workshop.root / "plan.json"
    main(["plan", "--config", str(workshop.config_file), *words, "--gpus-per-node", "2", "--json", str(figures)])
    (one,) = json.loads(figures.read_text())["candidates"]
    model = create_model(config, AnyDataset(config))
    trained = parameter_counts(model.decoder, model.encoder, 1)["trained"]
    assert one["ep_size"] == 1 and one["memory"]["routed activations"] == one["memory"]["dispatch buffers"] == 0
    assert one["memory"]["parameters"] == pytest.approx(4 * trained, abs=16)
    assert not any(sent["near"] for sent in one["traffic"] if "all-to-all" in sent["name"])
    assert "best: ep_size=1" in capsys.readouterr().out


def fgmoe(*words: object, plug_ins: tuple[str, ...] = ()) -> str:
    options = [word for name in plug_ins for word in ("--plugin", example(name))]
    command = [sys.executable, "-m", "fgmoe_dist.cli", *map(str, words), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "pt2"])
def test_its_model_becomes_a_file_that_a_fresh_process_runs(workshop, linear_run, tmp_path, format):
    out, plug_ins = tmp_path / "model", (*WORKSHOP, "linear", "lottery")
    checkpoint = ("export", "--checkpoint", workshop.folder("linear"))
    fgmoe(*checkpoint, "--format", format, "--output", out, "--json", tmp_path / "export.json", plug_ins=plug_ins)
    figures = json.loads((tmp_path / "export.json").read_text())
    assert figures["tasks"].keys() == {"warmth", "slope", "material"} and figures["relative_difference"] < 1e-5


@pytest.mark.slow
def test_the_verbs_take_it_from_there(workshop, linear_run, tmp_path):
    """Evaluated, predicted, scored by two processes from the files themselves, and compared, by command lines alone."""
    run, out, plug_ins = workshop.folder("linear"), tmp_path / "out", (*WORKSHOP, "linear", "lottery")
    own = RunFolder(run).evaluation(2)
    fgmoe("evaluate", "--checkpoint", run, "--json", tmp_path / "again.json", plug_ins=plug_ins)
    fgmoe("predict", "--checkpoint", run, "--input", workshop.root / "images", "--output", out, plug_ins=plug_ins)
    labels = ("--dataset", EXAMPLES / "workshop.yaml", "--root", workshop.root, "--workers", 2)
    scored = (
        "score",
        *labels,
        "--predictions",
        out,
        "--json",
        tmp_path / "scored.json",
        "--report",
        tmp_path / "report",
    )
    assert "slope" in fgmoe(*scored, plug_ins=WORKSHOP)
    for name in ("again", "scored"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        for task, scores in own.items():
            assert found[task] == pytest.approx(scores, rel=1e-3, nan_ok=True), (name, task)
    table = fgmoe("compare", run)  # a run says itself what its tasks are measured by
    assert "warmth mae" in table and "slope mean" in table and "material mIoU" in table


@pytest.mark.dist
def test_a_launcher_passes_them_on(workshop):
    """To ranks, and from there to their loader processes."""
    words = ["--config", str(workshop.config_file)]
    changes = {**LINEAR, "data__workers": 1, "train__steps": 1}
    words += [f"--plugin={example(name)}" for name in (*WORKSHOP, "linear", "lottery", "averaging")]
    words += ["--plugin", example("csv_sink"), *workshop.overrides("launched", changes)]
    done = subprocess.run(
        ["bash", "launchers/torchrun.sh", *words], cwd=ROOT, env=environment(NPROC="2"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(workshop.metrics("launched")) == 1 and "plug-in linear" in done.stdout


def test_a_checkpoint_names_what_it_lacks(workshop, linear_run):
    from fgmoe_dist.checkpoints.checkpoint import load_model

    with pytest.raises(UserError) as caught:
        load_model(workshop.folder("linear"))
    for told in ("decoder.kind='linear'", "tasks.0='warmth'", "train.weighting.kind='lottery'", "--plugin"):
        assert told in str(caught.value)
    with plugged("linear", "lottery", "warmth"), pytest.raises(UserError, match="kind angle.*--plugin"):
        load_model(workshop.folder("linear"))


def test_shards_that_are_gone_are_not_missed(workshop, linear_run, with_linear, tmp_path):
    """A checkpoint knows itself the tasks that its data set has defined."""
    from fgmoe_dist.checkpoints.checkpoint import load_model

    checkpoint = Path(shutil.copytree(find_checkpoint(workshop.folder("linear")), tmp_path / "checkpoint"))
    state = json.loads((checkpoint / "state.json").read_text().replace(str(workshop.root), "/nowhere"))
    del state["checksum"]  # as a person may who edits it
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert read_state(checkpoint).config["data"]["train"] == "/nowhere/train"
    model, *_ = load_model(checkpoint)
    assert [task.name for task in model.tasks] == ["warmth", "slope", "material"]


def test_parts_of_a_block_at_ep_size_2(runs):
    """A kind of expert, a router and a balance loss; half of the experts on each rank, as with all of them on both."""
    parts = {
        "tasks": "[depth, normals]", "train__steps": 2, "experts__kind": "gated", "experts__router": "cosine",
        "experts__balance_losses": "{unevenness: 0.5}",
    }  # fmt: skip
    with plugged("gated", "cosine", "unevenness"):
        apart, whole = (runs.train(f"ep{ep_size}", 2, parallel__ep_size=ep_size, **parts) for ep_size in (2, 1))
    for mine, theirs in zip(apart, whole):
        assert mine["experts/unevenness_loss"] == pytest.approx(theirs["experts/unevenness_loss"], rel=1e-5)
        assert 0 < mine["experts/unevenness_loss"] < 1
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert losses(apart) == pytest.approx(losses(whole), rel=1e-5)
    assert read_state(find_checkpoint(runs.folder("ep2"))).ep_size == 2


def test_a_kernel_computes_what_the_reference_does_and_trains(runs):
    few = {"tasks": "[depth]", "decoder__blocks": 1, "train__steps": 1, "parallel__ep_size": 2}
    with plugged("dense"):
        shapes = EXPERT_KINDS["ffn"].shapes(6, 4).values()
        bank = EXPERT_KINDS["ffn"].Weights(*(torch.randn(3, *shape) for shape in shapes))
        rows = torch.randn(4, 6), torch.rand(4, 2), torch.tensor([[0, 2], [1, -1], [2, 1], [-1, -1]])
        dense, reference = (find_kernel("ffn", name)(*rows, bank) for name in ("dense", "reference"))
        torch.testing.assert_close(dense, reference)
        (line,) = runs.train("dense", 2, experts__kernel="dense", **few)
    assert 0 < line["grad_norm"] < float("inf")


@pytest.fixture
def strips(tmp_path) -> Path:
    """Four photographs, dark at the left, and their albedo, dark at the right."""
    root = tmp_path / "Strips"
    for folder in ("lists", "pairs"):
        (root / folder).mkdir(parents=True)
    for number, id_ in enumerate("abcd"):
        left_HWC = np.full((*HW, 3), 40 * number)
        save(root / f"pairs/{id_}.png", np.concatenate([left_HWC, left_HWC + 100], 1))
    (root / "lists/train.txt").write_text("a b")
    (root / "lists/val.txt").write_text("c d")
    return root


def test_a_layout_is_built_by_processes_and_trained(strips, tmp_path):
    with plugged("strips"):
        for split, workers in (("train", 2), ("val", 1)):
            build_shards(open_layout("strips", strips), split, tmp_path / split, workers=workers, samples_per_shard=1)
    with plugged("linear"):
        runs = Runs(tmp_path, tmp_path / "train", tmp_path / "val")
        few = {"tasks": "[albedo]", "decoder__kind": "linear", "decoder__channels": 8, "train__batch_size": 2}
        (line,) = runs.train("run", 2, train__steps=1, **few)
    assert line["loss"] == line["loss/albedo"] > 0
    assert json.loads((tmp_path / "run/eval/1.json").read_text())["albedo"].keys() == {"rmse", "mae"}


def test_the_page_on_extending_quotes_the_examples():
    page = (ROOT / "docs/extending.md").read_text()
    quoted = dict(re.findall(r"`examples/plugins/([\w.]+)`\n\n```(?:python|yaml)\n(.*?)```\n", page, re.DOTALL))
    assert quoted == {path.name: path.read_text() for path in EXAMPLES.iterdir() if path.is_file()}
    dictionaries = {f"{module.removeprefix('fgmoe_dist.')}.{name}" for module, name in plugins.SEAMS.values()}
    for dictionary in dictionaries:
        assert f"`{dictionary.replace('.registry', '')}`" in page, dictionary


@pytest.mark.parametrize(("said", "own"), [("unit: m", "'K'"), ("metric: rmse", "'mae'")])
def test_a_data_set_may_not_say_otherwise_of_a_task_that_a_plug_in_has(workshop, tmp_path, said, own):
    described = tmp_path / "odd.yaml"
    described.write_text((EXAMPLES / "workshop.yaml").read_text().replace("unit: K", said))
    with plugged(*WORKSHOP), pytest.raises(UserError, match=f"tasks.warmth.{said.split(':')[0]}=.*{own} everywhere"):
        open_layout(described, workshop.root)
