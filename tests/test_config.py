"""Configuration: inheritance, overrides, and every mistake named at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args, get_origin

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticUndefined

from fgmoe_dist.config import Config, build_config, check_world, load_config, to_yaml
from fgmoe_dist.errors import UserError
from fgmoe_dist.settings import Section, flatten, known_keys
from fgmoe_dist.yaml_files import parse_yaml

CONFIGS = sorted(
    path
    for folder in (".", "decoders")
    for path in (Path(__file__).resolve().parents[1] / "configs" / folder).glob("*.yaml")
)


def write(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def mistakes(values: dict) -> str:
    with pytest.raises(UserError) as error:
        build_config(values)
    assert "\n" not in str(error.value)
    return str(error.value)


# Files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    config = load_config(path)
    assert build_config(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.startswith(("nyud_", "pascal_"))])
def test_the_field_s_protocol_is_the_default(path):
    train = load_config(path).train
    assert (train.optimizer, train.steps, train.batch_size, train.weight_decay, train.poly_power) == (
        "adam", 40_000, 4, 1e-6, 0.9,
    )  # fmt: skip
    assert train.lr == (1e-5 if path.stem.startswith("nyud") else 2e-5)
    if "dinov2" not in path.stem:  # whose patches are of 14 pixels: see encoders/test_presets.py
        assert load_config(path).data.image_size == ((448, 576) if path.stem.startswith("nyud") else (512, 512))


def test_a_configuration_is_read_from_a_pipe():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("train: {lr: 0.25}")
    assert load_config(Path(f"/dev/fd/{reading}"), []).train.lr == 0.25
    os.close(reading)


def test_a_file_inherits_section_by_section(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.yaml", train={"steps": 5, "lr": 0.5}, tasks=["semseg", "depth"])
    write(tmp_path / "sub/b.yaml", inherits="../a.yaml", train={"lr": 0.25}, run={"name": "b"})
    write(tmp_path / "c.yaml", inherits="sub/b.yaml", tasks=["edge"])
    config = load_config(tmp_path / "c.yaml")
    assert (config.train.steps, config.train.lr, config.run.name, config.tasks) == (5, 0.25, "b", ["edge"])


def test_a_circle_is_refused(tmp_path):
    write(tmp_path / "a.yaml", inherits="b.yaml")
    write(tmp_path / "b.yaml", inherits="a.yaml")
    with pytest.raises(UserError, match="inherits from itself"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [1, 2", "no valid YAML"),
        ("- 1\n- 2\n", "holds a list, not a mapping"),
        ("inherits: nowhere.yaml\n", "nowhere.yaml: cannot be read"),
        ("inherits: [a.yaml, b.yaml]\n", "name one file"),
        ("train:\n", "train=None"),
        ("1: 2\n", "1"),
        ("\x00", "no valid YAML"),
        ("train: {lr: 1}\ntrain: {steps: 5}\n", "train is given twice (lines 1 and 2); keep one"),
        ("train: {lr: 1, lr: 2}\nrun: {name: a, name: a}\n", "train.lr is given twice"),
        ("train: {steps: 1:30}\n", "train.steps='1:30': input should be a valid integer"),
        ("train: {steps: 2024-01-01}\n", "train.steps='2024-01-01'"),
        ("run: {name: 2024}\n", "in quotes it is one"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("")
    assert load_config(path) == Config()


def test_words_of_a_file_are_taken_as_they_are_written(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("run: {name: 010, seed: 010}\ntrain: {lr: 1e-3, steps: 1_000, clip_norm: 010}\n"
                    "tracking: {experiment: 2024-01-01}\nexperts: {renormalise: yes, kernel: auto}\n")  # fmt: skip
    config = load_config(path, ["data.train=no", "train.loss_weights.depth=1e1"])
    assert (config.run.name, config.run.seed, config.tracking.experiment) == ("010", 10, "2024-01-01")
    assert (config.train.lr, config.train.steps, config.train.clip_norm) == (1e-3, 1000, 10)
    assert config.experts.renormalise is True and config.data.train == "no"
    assert config.train.loss_weights == {"depth": 10}


# Overrides


def test_overrides_are_read_as_yaml_and_come_last(tmp_path):
    path = write(tmp_path / "a.yaml", train={"steps": 5}, experts={"top_k": 1})
    config = load_config(
        path, ["train.steps=7", "train.lr=1e-3", "tasks=[sal, edge]", "train.steps=8", "tracking.uri=", "run.name=a=b",
               "encoder.taps=null", "experts.renormalise=true", "train.loss_weights.edge=5", "data.train=s/{0..3}.tar"],
    )  # fmt: skip
    assert (config.train.steps, config.train.lr, config.tasks) == (8, 1e-3, ["sal", "edge"])
    assert (config.tracking.uri, config.run.name, config.encoder.taps) == ("", "a=b", None)
    assert (config.experts.top_k, config.experts.renormalise) == (1, True)
    assert config.train.loss_weights == {"edge": 5}
    assert config.data.train == "s/{0..3}.tar"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("train.steps.more=3", "train.steps"),
        ("train.stesp=3", "did you mean train.steps?"),
        ("trian.steps=3", "trian: no such key; did you mean train?"),
        ("encoder.top_k=3", "did you mean experts.top_k?"),
        ("top_k=3", "did you mean experts.top_k?"),
        ("data.quux=3", "`--print-config` lists them all"),
        ("train.steps=many", "train.steps='many'"),
        ("train.lr=.nan", "train.lr"),
        ("train.clip_norm=.inf", "train.clip_norm"),
        ("train.loss_weights={edge: 1, edge: 2}", "edge is given twice"),
        ("run.dir=", "run.dir='': is empty"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, said):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path / "a.yaml"), [override])
    assert said in str(error.value) and "\n" not in str(error.value)


# Mistakes


def test_all_mistakes_come_in_one_list():
    said = mistakes(
        {
            "train": {"stesp": 3, "lr": -1, "precision": "fp8"},
            "experts": {"hidden": 100, "split": 3, "count": 2, "top_k": 7},
            "tasks": ["semseg", "smeseg"],
            "nonsense": {},
        }
    )
    assert "7 mistakes" in said
    for part in ("did you mean train.steps?", "train.lr=-1", "train.precision='fp8'", "hidden=100 is not divisible",
                 "top_k=7 exceeds the 6", "tasks.1='smeseg'", "nonsense: no such key"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": ["edge", "edge"]}, "named twice"),
        ({"tasks": []}, "tasks=[]"),
        ({"parallel": {"ep_size": 3}}, "ep_size=3 does not divide the 16"),
        ({"experts": {"shared_gate": "joint", "score": "sigmoid"}}, "score=softmax"),
        ({"experts": {"backend": "deepspeed", "noise": 1.0}}, "experts.noise=1.0 needs experts.backend=fused"),
        ({"experts": {"backend": "fairscale"}}, "top-2"),
        ({"experts": {"backend": "deepspeed", "bias_update_rate": 0.1}}, "bias_update_rate=0.1 needs experts.backend"),
        ({"experts": {"backend": "deepspeed", "max_ranks_per_token": 1}}, "max_ranks_per_token=1 needs"),
        ({"experts": {"backend": "deepspeed", "capacity_factor": 1.0}}, "capacity_factor=1.0 needs"),
        ({"experts": {"groups": 4, "max_ranks_per_token": 9}}, "limits nothing: there are 4 groups"),
        ({"experts": {"kernel": "grouped", "hidden": 24, "split": 4}}, "experts.hidden gives 6 numbers in fp32"),
        ({"experts": {"groups": 3}}, "groups=3 does not divide the 16"),
        ({"experts": {"groups": 4}, "parallel": {"ep_size": 8}}, "not a multiple of parallel.ep_size=8"),
        ({"experts": {"groups": 8, "max_ranks_per_token": 1}}, "leaves a token 2 of the 16"),
        ({"experts": {"max_ranks_per_token": 1, "top_k": 5}, "parallel": {"ep_size": 4}}, "leaves a token 4 of the 16"),
        ({"data": {"image_size": [-64, -64]}}, "both sides must be positive"),
        ({"data": {"image_size": [64]}}, "data.image_size"),
        ({"data": {"scale_range": [2.0, 0.5]}}, "lowest"),
        ({"data": {"max_bad_samples": -1}}, "max_bad_samples"),
        ({"train": 5}, "train=5"),
        ({"decoder": {"stride": 7}}, "not a multiple of decoder.stride=7"),
        ({"train": {"precision": "bf16"}, "parallel": {"zero_stage": 0}}, "zero_stage=1 or 2"),
    ],
)
def test_settings_that_contradict(values, said):
    assert said in mistakes(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        # What a faulty value's default would contradict is nobody's mistake.
        ({"data": {"image_size": 224}, "decoder": {"stride": 7}}, "data.image_size=224: give a list of 2 values, as"),
        ({"data": {"image_size": [224]}, "decoder": {"stride": 7}}, "data.image_size=[224]: give a list of 2 values"),
        ({"data": {"image_size": [1, 2, 3]}, "decoder": {"stride": 7}}, "data.image_size=[1, 2, 3]: give a list of 2"),
        ({"data": {"image_size": [224, "x"]}, "decoder": {"stride": 7}}, "data.image_size.1='x': input should be a"),
        ({"data": {"image_size": [154, 154]}, "decoder": {"stride": "seven"}}, "decoder.stride='seven'"),
        ({"data": {"image_size": [154, 154]}, "decoder": {"strid": 7}}, "did you mean decoder.stride?"),
        ({"data": {"scale_range": 1.5}}, "data.scale_range=1.5: give a list of 2 values, as in [0.5, 2.0]"),
        ({"experts": {"count": "two", "top_k": 20}}, "experts.count='two'"),
        ({"experts": {"split": 0, "hidden": 6}}, "experts.split=0"),
        ({"experts": {"groups": -1, "max_ranks_per_token": 1, "top_k": 5}}, "experts.groups=-1"),
        ({"parallel": {"zero_stage": 9}, "train": {"precision": "bf16"}}, "parallel.zero_stage=9"),
        ({"parallel": 5, "train": {"precision": "bf16"}}, "parallel=5: is a section, whose keys stand below it"),
        ({"tasks": "edge", "train": {"loss_weights": dict.fromkeys(Config().tasks, 0)}}, "tasks='edge'"),
        # Numbers that are none, or that nobody means.
        ({"train": {"loss_weights": {"edge": -1}}}, "train.loss_weights.edge=-1: input should be greater than"),
        ({"train": {"loss_weights": {"edge": float("nan")}}}, "train.loss_weights.edge=nan: input should be a finite"),
        ({"train": {"loss_weights": [1, 2]}}, "train.loss_weights=[1, 2]: give a mapping"),
        ({"train": {"loss_weights": dict.fromkeys(Config().tasks, 0)}}, "nothing would be learnt"),
        ({"train": {"steps": True}}, "train.steps=True: give a number, not a truth value"),
        ({"encoder": {"taps": [1, True]}}, "encoder.taps=[1, True]: give a number"),
        ({"train": {"loss_weights": {"edge": True}}}, "train.loss_weights: give a number"),
        ({"experts": {"renormalise": "perhaps"}}, "experts.renormalise='perhaps': give true or false"),
        ({"run": {"seed": 2**64}}, "run.seed=18446744073709551616: input should be less than"),
        ({"run": {"name": 42}}, "run.name=42: input should be a valid string; in quotes it is one"),
        ({"run": {"name": "a\0b"}}, "a text holds no NUL character"),
        ({"run": {"dir": ""}}, "run.dir='': is empty; give it a value"),
        ({"encoder": {"name": ""}}, "encoder.name='': is empty"),
        ({"train": {"lr": 10**400}}, "train.lr="),
        ({"encoder": {"taps": [-1]}}, "encoder.taps.0=-1"),
        *(
            ({section: {key: 10**18}}, f"{section}.{key}=1000000000000000000: input should be less than")
            for section, keys in {
                "train": "steps batch_size micro_batch_size log_every checkpoint_every pictures keep_checkpoints",
                "experts": "count split hidden top_k shared global_experts groups max_ranks_per_token",
                "data": "workers views", "decoder": "channels stride blocks mixer_depth adapter_rank",
                "parallel": "ep_size",
            }.items()
            for key in keys.split()
        ),
        ({"data": {"image_size": [10**9, 448]}}, "data.image_size.0=1000000000: input should be less"),
        ({"data": {"scale_range": [1e-9, 1]}}, "data.scale_range.0=1e-09: input should be greater"),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once_and_nothing_else_is_blamed(values, said):
    found = mistakes(values)
    assert found.startswith(said) or said in found.split(": 2 mistakes: ")[-1]
    assert "; train" not in found and "; data" not in found and "; decoder" not in found and "; experts" not in found


def test_a_rule_that_a_faulty_value_does_not_touch_is_told_too():
    said = mistakes({"data": {"image_size": 224}, "experts": {"hidden": 100, "split": 3, "top_k": 13}})
    assert "3 mistakes" in said and "hidden=100 is not divisible" in said and "top_k=13 exceeds the 12" in said


def test_the_command_line_gives_no_weight_to_a_loss_that_is_not_there(tmp_path):
    path = write(tmp_path / "a.yaml", train={"loss_weights": {"edge": 50, "depth": 1}})
    config = load_config(path, ["tasks=[depth]"])
    assert config.train.loss_weights == {"edge": 50, "depth": 1}, "a file for all tasks serves one of them"
    with pytest.raises(
        UserError, match="2 mistakes.*train.loss_weights.edge=5: edge is none of tasks=.'depth'.*no NUL"
    ):
        load_config(path, ["tasks=[depth]", "train.loss_weights.edge=5", "run.name=a\0b"])
    with pytest.raises(UserError, match="train.loss_weights.egde='egde': no such task; did you mean edge"):
        load_config(path, ["tasks=[depth]", "train.loss_weights.egde=5"])


@pytest.mark.parametrize("key", ["max_ranks_per_token", "device_balance_weight"])
def test_groups_of_experts_are_written_down_where_they_matter(key):
    """A checkpoint read by one process routes as the ranks did that wrote it."""
    config = build_config({"experts": {key: 1}, "parallel": {"ep_size": 4}})
    assert (config.experts.groups, config.expert_groups) == (0, 4), "another ep_size may still be planned"
    alone = build_config({**config.pinned().model_dump(), "parallel": {"ep_size": 1}})
    assert (alone.experts.groups, alone.expert_groups) == (4, 4)
    assert build_config({"parallel": {"ep_size": 4}}).pinned().experts.groups == 0


def test_a_limit_that_one_rank_does_not_reach_is_written_down_as_none():
    config = build_config({"experts": {"max_ranks_per_token": 2}}).pinned()
    assert (config.experts.groups, config.experts.max_ranks_per_token) == (1, 1)
    assert build_config(config.model_dump()) == config


@pytest.mark.parametrize("name", ["nyud_vitb", "nyud_vitl", "pascal_vitb", "pascal_vitl"])
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [(1, []), (2, []), (2, ["parallel.ep_size=2"]), (32, ["train.batch_size=64", "parallel.ep_size=8"])],
)
def test_the_documented_commands_fit_their_ranks(name, ranks, changes):
    check_world(load_config(Path(__file__).parents[1] / f"configs/{name}.yaml", changes), ranks)


def test_the_ranks_must_fit():
    config = build_config({"train": {"batch_size": 6, "micro_batch_size": 1}, "parallel": {"ep_size": 2}})
    check_world(config, 2)
    check_world(config, 6)
    with pytest.raises(UserError, match="2 mistakes.*does not divide the 5 rank.*not a multiple of .* 5 ranks"):
        check_world(config, 5)


# Properties


@settings(deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20).filter(str.strip),
    lr=st.floats(1e-12, 1e6),
    taps=st.none() | st.lists(st.integers(0, 40)),
    weights=st.dictionaries(st.sampled_from(["semseg", "edge"]), st.floats(1e-9, 1e9)),
    folder=st.text(st.characters(whitelist_categories=("L", "N", "P", "Zs"))).filter(str.strip),
)
def test_what_is_printed_reads_back(name, lr, taps, weights, folder):
    values = {
        "run": {"name": name, "dir": folder}, "encoder": {"taps": taps},
        "train": {"lr": lr, "loss_weights": weights}, "data": {"scale_range": (1, 1.5)},
    }  # fmt: skip
    config = build_config(values)
    assert build_config(yaml.safe_load(to_yaml(config))) == config
    assert build_config(parse_yaml(to_yaml(config), "printed")) == config


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*Config.model_fields, "steps", "lr", "hidden", "x", "edge"]), inner, max_size=4
            )
        ),
    )
)
def test_any_values_give_a_configuration_or_a_user_s_error(values):
    if not isinstance(values, dict):
        values = {"train": values}
    try:
        build_config(values)
    except UserError as error:
        assert "\n" not in str(error)


def test_every_field_says_what_it_means():
    sections = [("", Config)]
    while sections:
        above, section = sections.pop()
        for name, field in section.model_fields.items():
            if issubclass_of_section(field.annotation):
                sections.append((f"{above}{name}.", field.annotation))
                continue
            assert field.description, f"{above}{name}"
            assert field.default is not PydanticUndefined or field.default_factory, f"{above}{name}"


def issubclass_of_section(annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def test_flat_names_are_those_of_set():
    flat = flatten(Config().model_dump(mode="json"))
    assert flat["experts.top_k"] == 4 and flat["tasks"] == ["semseg", "depth", "normals", "edge"]
    keys = known_keys(Config)
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    assert flat.keys() <= leaves
    others = {key for key in leaves - flat.keys() if not key.startswith(("decoder.", "train.weighting."))}
    assert others == {"train.loss_weights", "experts.balance_losses"}, "empty mappings have no names"
    weighted = build_config({"train": {"loss_weights": {"depth": 2}}}).model_dump(mode="json")
    assert flatten(weighted) == {**flat, "train.loss_weights.depth": 2.0}


MAY_BE_EMPTY = {"data.train", "data.val", "tracking.uri"}


def texts(model, above=""):
    """Keys that hold text, or a list of it."""
    for name, field in model.model_fields.items():
        if issubclass_of_section(field.annotation):
            yield from texts(field.annotation, f"{above}{name}.")
        elif field.annotation in (str, Path) or (
            get_origin(field.annotation) is list and str in get_args(field.annotation)
        ):
            yield f"{above}{name}", field.annotation


@pytest.mark.parametrize("key", [key for key, _ in texts(Config)])
def test_an_empty_path_or_name_is_refused(key):
    kind = dict(texts(Config))[key]
    for text in ("", " ", "\t"):
        values: dict = {}
        *above, leaf = key.split(".")
        section = values
        for name in above:
            section = section.setdefault(name, {})
        section[leaf] = [text] if get_origin(kind) is list else text
        if key in MAY_BE_EMPTY:
            build_config(values)
        else:
            with pytest.raises(UserError, match=re.escape(key)):
                build_config(values)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.dir=", "run.dir='': is empty"),
        ("run.dir=~/runs/a", "begins with ~"),
        ("run.name=", "run.name='': is empty"),
        ('run.dir="a\\0b"', "NUL character"),
        ("run.seed=18446744073709551616", "should be less than 18446744073709551616"),
        ("run.seed=-1", "greater than or equal to 0"),
        ("run.seed=1e400", "run.seed"),
    ],
)
def test_what_no_run_can_be_named_or_seeded_by(tmp_path, override, told):
    (tmp_path / "a.yaml").write_text("{}")
    with pytest.raises(UserError, match=re.escape(told)):
        load_config(tmp_path / "a.yaml", [override])


def test_the_largest_seed_is_one(tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    config = load_config(tmp_path / "a.yaml", ["run.seed=18446744073709551615"])
    torch.manual_seed(config.run.seed)
    assert build_config(yaml.safe_load(to_yaml(config))) == config
