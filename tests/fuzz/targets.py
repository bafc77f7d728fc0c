"""What reads input, and what must hold of what it makes of it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fgmoe_dist.arguments import parse, refuse_empty
from fgmoe_dist.data.layouts import open_layout
from fgmoe_dist.labels import Label
from tests.archives import write_nyud
from tests.fuzz.data import DATA_TARGETS
from tests.fuzz.harness import Target, must
from tests.fuzz.mutate import ODD, one_of, spoil_file, spoil_one, spoil_tree
from tests.runs import SETTINGS

# Configurations.


def _write_config(folder: Path) -> None:
    above = {"inherits": "base.yaml", "train": {"steps": 7}, "run": {"name": "a", "dir": "runs/a"}}
    (folder / "base.yaml").write_text(
        yaml.safe_dump({**SETTINGS, "data": {**SETTINGS["data"], "train": "t", "val": "v"}})
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(above))
    (folder / "overrides.json").write_text(json.dumps(["train.lr=0.001", "experts.top_k=2", "tasks=[semseg]"]))


def _use_config(folder: Path) -> None:
    from fgmoe_dist.config import load_config, to_yaml

    overrides = json.loads((folder / "overrides.json").read_text())
    config = load_config(folder / "config.yaml", overrides)
    (folder / "again.yaml").write_text(to_yaml(config))
    must(load_config(folder / "again.yaml") == config, "the configuration written and read again is another")


def _spoil_config(folder: Path, rng: random.Random) -> str:
    if rng.random() < 0.7:
        return spoil_file(folder / rng.choice(["config.yaml", "base.yaml"]), rng)
    values = json.loads((folder / "overrides.json").read_text())
    keys = [
        "train.steps",
        "run.seed",
        "run.dir",
        "data.image_size",
        "tasks",
        "experts",
        "train",
        "parallel.ep_size",
        "x",
        "",
    ]
    value = rng.choice(
        [*ODD, "[", "{a: b", "1:30", "010", "0x10", "1e3", "~", "!!python/object:os.system {}", "&a [*a]"]
    )
    values.append(f"{rng.choice(keys)}={value}" if rng.random() < 0.9 else str(value))
    (folder / "overrides.json").write_text(json.dumps(values))
    return f"--set {values[-1]!r}"[:100]


# Checkpoints, exported models.


def _tiny_model() -> tuple[Any, Any]:
    from dataclasses import replace

    from tests.export.models import tiny_model

    model, state = tiny_model()
    return model, replace(state, encoder_checksum=model.encoder.checksum)


def _write_checkpoint(folder: Path) -> None:
    from fgmoe_dist.checkpoints import checkpoint as c

    model, state = _tiny_model()
    decoder = model.decoder
    weights = {f"{name}.weight": value for name, value in c._replicated(decoder)}
    weights |= {f"{name}.weight": value for name, value in c.buffers_of(decoder)}
    for prefix, layer in c._expert_layers(decoder):
        for expert in layer.logical_experts():
            value = expert.parameter if expert.index is None else expert.parameter[expert.index]
            weights[f"{c._expert_name(prefix, expert)}.weight"] = value
    place = folder / "checkpoints/step-00000003"
    place.mkdir(parents=True)
    c.save_file(
        {name: value.detach().float().clone() for name, value in weights.items()}, place / "decoder.safetensors"
    )
    buffers = [name for name, _ in c.buffers_of(decoder)]
    (place / "state.json").write_text(json.dumps({**asdict(state), "buffers": buffers}))
    (folder / "checkpoints/latest").write_text("step-00000003")


def _use_state(folder: Path) -> None:
    from fgmoe_dist.checkpoints.folder import WHOLE, find_checkpoint, read_state
    from fgmoe_dist.config import build_config
    from fgmoe_dist.tasks import create_tasks

    found = find_checkpoint(folder)
    if found is not None:
        state = read_state(found)
        create_tasks(state.tasks, state)
        build_config(state.changed_config(WHOLE))


def _use_model(folder: Path) -> None:
    from fgmoe_dist.checkpoints.checkpoint import load_model

    model, _, state = load_model(folder)
    must(list(state.tasks) == [task.name for task in model.tasks], "the model has other tasks than its checkpoint")


def _write_export(folder: Path) -> None:
    from fgmoe_dist.export.write import about, convert_model

    model, state = _tiny_model()
    convert_model(model, state, "safetensors")(folder / "model.safetensors")
    must(bool(about(model, state)), "an exported model says what it is")


def _use_export(folder: Path) -> None:
    from fgmoe_dist.export.load import load_exported

    load_exported(folder / "model.safetensors")


# Predictions, photographs, records.


class _Info:
    tasks = ("semseg", "sal", "edge", "depth", "normals", "species", "motion")
    classes: Mapping[str, Any] = {"semseg": ["a", "b", "c"], "species": [f"s{n}" for n in range(300)]}
    definitions: Mapping[str, Any] = {
        "species": {"kind": "classes"},
        "motion": {"kind": "vectors", "channels": 2, "unit": False, "range": [-1, 1], "metric": "rmse"},
    }
    boundary_max_dist = 0.01


def _write_predictions(folder: Path) -> None:
    from fgmoe_dist.evaluation.predictions import write_predictions
    from fgmoe_dist.tasks import create_tasks

    rng, size_hw = np.random.default_rng(0), (8, 10)
    direction_HWC = rng.normal(size=(*size_hw, 3)).astype(np.float32)
    write_predictions(folder, "a", {
        "semseg": rng.integers(0, 3, size_hw).astype(np.uint8), "sal": rng.integers(0, 256, size_hw).astype(np.uint8),
        "edge": rng.integers(0, 256, size_hw).astype(np.uint8), "depth": rng.uniform(1, 9, size_hw).astype(np.float32),
        "normals": direction_HWC / np.linalg.norm(direction_HWC, axis=-1, keepdims=True),
        "species": rng.integers(0, 300, size_hw).astype(np.uint16),
        "motion": rng.uniform(-1, 1, (*size_hw, 2)).astype(np.float32),
    })  # fmt: skip
    must(len(create_tasks(_Info.tasks, _Info())) == 7, "the tasks are known")


def _use_predictions(folder: Path) -> None:
    from fgmoe_dist.evaluation.predictions import read_prediction
    from fgmoe_dist.tasks import create_tasks

    for task in create_tasks(_Info.tasks, _Info()):
        prediction = read_prediction(folder, task, "a")
        _score(task.label, task, prediction)


def _score(label: Label, task: Any, prediction: np.ndarray) -> None:
    """The meter takes it or refuses it, and what it counts is finite."""
    meter, size_hw = task.meter(), (8, 10)
    zeros = {"scalar": np.ones(size_hw, np.float32), "vectors": np.zeros((*size_hw, 3), np.float32)}
    truth = zeros.get(label.kind, np.zeros(size_hw, np.uint8))
    if task.name == "species":
        truth = truth.astype(np.uint16)
    if label.kind == "vectors":
        truth = np.full((*size_hw, label.channels), 1 / np.sqrt(label.channels), np.float32)
    sample = {"id": "a", task.name: truth, "boundary": truth}
    meter.update(prediction, sample)
    must(bool(np.isfinite(meter.state()).all()), f"{task.name}: the meter's sums are {meter.state()}")


def _write_photographs(folder: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "a.jpg", exif=exif)
    for name in ("b.png", "c.tif", "d.webp", "e.bmp"):
        picture.save(folder / name)


def _use_photographs(folder: Path) -> None:
    from fgmoe_dist.data.images import list_images, read_image

    for path in list_images(folder).values():
        image_HWC = read_image(path)
        right = image_HWC.dtype == np.uint8 and image_HWC.ndim == 3 and image_HWC.shape[2] == 3 and image_HWC.size > 0
        must(right, f"{path.name} is {image_HWC.dtype} {image_HWC.shape}")


def _write_run(folder: Path) -> None:
    from fgmoe_dist.config import build_config, to_yaml
    from fgmoe_dist.tracking.run_folder import RunFolder

    for name in ("a", "b"):
        run = RunFolder(folder / name)
        run.create(to_yaml(build_config({**SETTINGS, "run": {"name": name}})))
        for step in (1, 2, 3):
            run.append(step, {"loss": 1.0 / step, "images_per_second": 7.5, "lr": 1e-3})
        run.write_evaluation(3, {"semseg": {"mIoU": 12.5}, "depth": {"rmse": 0.5}})
        headlines = {"semseg": {"metric": "mIoU", "lower_is_better": False}}
        run.update_about(status="FINISHED", tags={"world": "1"}, model={"total": 12}, headlines=headlines)


def _use_runs(folder: Path) -> None:
    from fgmoe_dist.tracking.compare import compare, read_folders, to_json, to_markdown

    records = read_folders([folder], unfinished=True)
    rows = compare(records, every_metric=True)
    to_markdown(records, rows)
    json.dumps(to_json(records, rows))


def _write_image_sums(folder: Path) -> None:
    from fgmoe_dist.metrics.image_sums import ImageSums

    about = {"tasks": ["semseg", "depth"], "classes": {"semseg": ["a", "b"]}, "boundary_max_dist": 0.01,
             "definitions": {}}  # fmt: skip
    for name in ("a", "b"):
        sums, rng = ImageSums(), np.random.default_rng(ord(name))
        for n in range(5):
            sums.add(str(n), {"semseg": rng.integers(1, 9, 4).astype(float), "depth": rng.random(8) + 1})
        sums.save(folder / f"{name}.npz", about)


def _spoil_image_sums(folder: Path, rng: random.Random) -> str:
    """Bytes of the file, entries of its header, or one of its arrays."""
    path = one_of(folder, rng, "*.npz")
    if rng.random() < 0.3:
        return spoil_file(path, rng)
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice(["header", "header", *arrays])
    if name == "header":
        header, told = spoil_tree(json.loads(arrays["header"].tobytes()), rng)
        with contextlib.suppress(ValueError, TypeError):  # what JSON cannot say
            arrays["header"] = np.frombuffer(json.dumps(header).encode(errors="replace"), np.uint8)
    else:
        array = arrays[name].copy()
        changes = {
            "cut": lambda: array[:-1], "longer": lambda: np.append(array, array), "flat": lambda: array[0],
            "real": lambda: array + 0.5, "negative": lambda: -array.astype(int), "words": lambda: array.astype(str),
            "huge": lambda: array.astype(np.int64) * 2**40, "nan": lambda: np.full(array.shape, np.nan),
        }  # fmt: skip
        told = rng.choice(sorted(changes))
        arrays[name] = changes[told]()
    np.savez(path, **arrays)
    return f"{path.name}: {name}: {told}"


def _use_image_sums(folder: Path) -> None:
    from fgmoe_dist.tracking.believe import Headline, differences

    tasks = [Headline("semseg", "mIoU", False), Headline("depth", "rmse", True)]
    for found in differences([str(folder / "a.npz"), str(folder / "b.npz")], tasks, 0, draws=20).values():
        for one in filter(None, found):
            must(np.isfinite(one.value), "a difference that is no number")


def _write_figures(folder: Path) -> None:
    results = Path(__file__).parents[2] / "benchmarks/results"
    shutil.copy(results / "machine.json", folder / "machine.json")
    (folder / "scores.json").write_text(json.dumps({"semseg": {"mIoU": 40.0}, "depth": {"rmse": 0.6, "abs_rel": None}}))


def _use_figures(folder: Path) -> None:
    from fgmoe_dist.errors import UserError
    from fgmoe_dist.evaluation.scores_json import read_scores
    from fgmoe_dist.planning.profile import machine_json, read_machine

    with contextlib.suppress(UserError):
        json.dumps(read_scores(folder / "scores.json"))
    machine_json(read_machine(folder / "machine.json"))


# The environment, command lines.


def _write_environment(folder: Path) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(place))


def _spoil_environment(folder: Path, rng: random.Random) -> str:
    values = json.loads((folder / "environment.json").read_text())
    told = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(sorted(values))
        odd = rng.choice(
            [None, "", " ", "x", "-1", "0", "1", "2", "7", "1.0", "1e3", "0x1", "65536", "1" * 30, "None", "1,1"]
        )
        values.pop(key) if odd is None else values.update({key: odd})
        told.append(f"{key}={odd!r}")
        if not values:
            break
    (folder / "environment.json").write_text(json.dumps(values))
    return ", ".join(told)


def _use_environment(folder: Path) -> None:
    from fgmoe_dist.ranks import read_environment

    values = json.loads((folder / "environment.json").read_text())
    place = read_environment(values)
    must(0 <= place.rank < place.world and place.local_rank >= 0, f"{place} is no place among ranks")
    must(place.world == int(values.get("WORLD_SIZE", 1)), f"{place} is of another world than {values}")


LINES = {
    "shards": [
        "check --dataset nyud --root archive --json found.json",
        "build --dataset nyud --root archive --split val --out out --samples-per-shard 2 --json figures.json",
        "build --dataset nyud --root archive --split val --out out --images ids.txt",
        "verify shards --json figures.json",
        "dump --shards shards --id 0001 --out look",
    ],
    "score": [
        "--shards shards --predictions predictions --workers 1 --json scores.json --details details.json",
        "--dataset nyud --root archive --split train --predictions predictions --workers 1 --tasks semseg",
        "--dataset nyud --root archive --split train --predictions predictions --workers 1 --images ids.txt",
    ],
    "train": ["--config config.yaml --print-config", "--config config.yaml --check-ranks 2 --set run.name=x"],
    "compare": ["runs --unfinished --json compared.json --markdown compared.md"],
}


def _write_lines(folder: Path) -> None:
    from fgmoe_dist.data.shards import build_shards
    from fgmoe_dist.evaluation.predictions import write_predictions

    layout = open_layout("nyud", write_nyud(folder / "archive"))
    build_shards(layout, "train", folder / "shards", samples_per_shard=2)
    for id_ in layout.ids("train"):
        sample = layout.read(id_)
        write_predictions(folder / "predictions", id_, {
            "semseg": np.where(sample["semseg"] == 255, 0, sample["semseg"]).astype(np.uint8),
            "depth": np.maximum(sample["depth"], 0.5),
        })  # fmt: skip
    (folder / "ids.txt").write_text("0001\n0002\n")
    (folder / "a_file").write_text("x")
    (folder / "a_folder").mkdir()
    (folder / "a_folder/mine.txt").write_text("x")
    _write_config(folder)
    _write_run(folder / "runs")
    (folder / "line.json").write_text(json.dumps(["shards", "verify", "shards"]))


def _spoil_line(folder: Path, rng: random.Random) -> str:
    verb = rng.choice(sorted(LINES))
    words = [verb, *rng.choice(LINES[verb]).split()]
    odd = ["", "a_file", "a_folder", "a_file/x", "a_folder/new/deep", "nowhere", "/proc/x", "/dev/null", ".", "-1", "0",
           "x" * 300, "1" * 30, "é", "a\nb", "*", "--help", "--nope", "pipe:", "{a,b", "http:", "s3://x/y"]  # fmt: skip
    for _ in range(rng.choice([1, 1, 2])):
        place, kind = rng.randrange(1, len(words)), rng.random()
        if kind < 0.8:
            words[place] = rng.choice(odd)
        elif kind < 0.9:
            del words[place]
        else:
            words.insert(place, rng.choice(odd))
        if len(words) < 2:
            break
    (folder / "line.json").write_text(json.dumps(words))
    return "fgmoe " + " ".join(word[:40] for word in words)


def _use_line(folder: Path) -> None:
    """As `fgmoe_dist.cli.main`, short of ending the process."""
    verb, *rest = json.loads((folder / "line.json").read_text())
    module = importlib.import_module(f"fgmoe_dist.verbs.{verb}")
    parser = argparse.ArgumentParser(f"fgmoe {verb}", allow_abbrev=False)
    module.add_arguments(parser)
    refuse_empty(rest)
    try:
        module.run(parse(parser, rest))
    except SystemExit as error:
        must(error.code in (0, 2, None), f"exit code {error.code}")
    must((folder / "a_folder/mine.txt").read_text() == "x", "a file is lost that nobody named")


TARGETS = [
    Target("config", _write_config, _spoil_config, _use_config, 8),
    *DATA_TARGETS,
    Target("state", _write_checkpoint, spoil_one("checkpoints/*/state.json", "checkpoints/latest"), _use_state, 6),
    Target("weights", _write_checkpoint, spoil_one("checkpoints/*/*"), _use_model, 1),
    Target("export", _write_export, spoil_one("*.safetensors"), _use_export, 1),
    Target("predictions", _write_predictions, spoil_one("*/*"), _use_predictions, 6),
    Target("photographs", _write_photographs, spoil_one("*"), _use_photographs, 3),
    Target("runs", _write_run, spoil_one("*/*", "*/eval/*"), _use_runs, 3),
    Target("image_sums", _write_image_sums, _spoil_image_sums, _use_image_sums, 3),
    Target("figures", _write_figures, spoil_one("*.json"), _use_figures, 2),
    Target("environment", _write_environment, _spoil_environment, _use_environment, 3),
    Target("line", _write_lines, _spoil_line, _use_line, 6),
]
