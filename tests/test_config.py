"""Configuration: inheritance, overrides, and every mistake named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticUndefined

from fgmoe_dist.config import Config, build_config, check_world, load_config, to_yaml
from fgmoe_dist.errors import UserError
from fgmoe_dist.settings import Section, flatten, known_keys

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
    assert load_config(path).data.image_size == ((448, 576) if path.stem.startswith("nyud") else (512, 512))


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
    name=st.text(st.characters(blacklist_categories=("Cs",)), max_size=20).filter(str.strip),
    lr=st.floats(1e-12, 1e6),
    taps=st.none() | st.lists(st.integers(0, 40)),
    weights=st.dictionaries(st.sampled_from(["semseg", "edge"]), st.floats(0, 1e9)),
    folder=st.text(st.characters(whitelist_categories=("L", "N", "P", "Zs")), min_size=1),
)
def test_what_is_printed_reads_back(name, lr, taps, weights, folder):
    values = {
        "run": {"name": name, "dir": folder}, "encoder": {"taps": taps},
        "train": {"lr": lr, "loss_weights": weights}, "data": {"scale_range": (1, 1.5)},
    }  # fmt: skip
    config = build_config(values)
    assert build_config(yaml.safe_load(to_yaml(config))) == config


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
