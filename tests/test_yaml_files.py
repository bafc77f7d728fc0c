"""YAML as people write it: what is given twice is refused, what could mean two things stays as it is written."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fgmoe_dist.errors import UserError
from fgmoe_dist.yaml_files import parse_value, parse_yaml, read_yaml

# By YAML 1.1 these are 8, 5400, False, True, 1000, a date, 3, 511 and a truth value; by 1.2 some are other numbers.
TWO_MEANINGS = ["010", "1:30", "no", "On", "1_000", "2024-01-01", "0b11", "0777", "y", "1e-3", "1E5", "0o7", "08", "="]


@pytest.mark.parametrize("word", TWO_MEANINGS)
def test_a_word_of_two_meanings_stays_as_it_is_written(word):
    assert parse_yaml(f"a: {word}\n{word}: [{word}]", "x") == {"a": word, word: [word]}
    assert parse_value(word) == word


@pytest.mark.parametrize(
    ("word", "value"),
    [("5", 5), ("-3", -3), ("0x1F", 31), ("1.5", 1.5), ("1.0e-05", 1e-5), (".5", 0.5), ("true", True), ("FALSE", False),
     ("null", None), ("~", None), ("'5'", "5"), ("+1", 1), ("-.inf", float("-inf"))],
)  # fmt: skip
def test_a_word_of_one_meaning_has_it(word, value):
    for found in (parse_yaml(f"a: {word}", "x")["a"], parse_value(word)):
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"a is given twice \(lines 1 and 3\)"),
        ("a: {x: 1, x: 2}", r"a\.x is given twice \(line 1\)"),
        ("a: [{x: 1}, {y: 1, 'y': 2}]\nb: 1\nb: 1\nb: 1", r"a\.1\.y is given twice.*; b is given .*2 and 3 and 4"),
        ("train:\n  lr: 1\ntrain:\n  steps: 1\n", "train is given twice"),
        ("a: &x [*x]", "no valid YAML .*holds itself"),
        ("[" * 4000, "no valid YAML .*nested"),
        ("a: 1\n---\na: 2\n", "no valid YAML .*single document"),
        ("a: !!python/name:os.system x", "no valid YAML"),
        ("a: !!timestamp 2024-01-01", "no valid YAML"),
        ("a: " + "9" * 5000, "no valid YAML"),
        ("{[1]: 2}", "no valid YAML"),
        ("a: !!int x", "no valid YAML"),
        ("\x00", "no valid YAML"),
        ("a:\tb\n\tc: d", "no valid YAML"),
        (b"\xff\xff", "no valid YAML"),
    ],
)
def test_a_text_that_is_refused(text, said):
    with pytest.raises(UserError, match=f"^file: .*{said}") as error:
        parse_yaml(text, "file")
    assert "\n" not in str(error.value)


def test_a_mapping_taken_in_may_be_overridden_and_an_anchor_used_again():
    found = parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: [*x, *x]", "file")
    assert found["y"] == {"a": 3, "b": 2} and found["z"] == [found["x"]] * 2
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert parse_yaml(bomb, "file")["a11"]  # nine to the eleventh, walked once each


def test_files_in_other_encodings_and_none_at_all(tmp_path):
    path = tmp_path / "x.yaml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("a: größe", encoding=encoding)
        assert read_yaml(path) == {"a": "größe"}
    path.write_text("")
    assert read_yaml(path) is None
    for wrong, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file"), ("a\0b", "null byte")):
        with pytest.raises(UserError, match=f"^--config .*cannot be read .*{why}.*name an existing YAML file"):
            read_yaml(wrong, "--config")


@pytest.mark.parametrize(
    ("text", "value"),
    [("", ""), ("[1, no]", [1, "no"]), ("{a: 1e-3}", {"a": "1e-3"}), ("s/{0..3}.tar", "s/{0..3}.tar"), ("'a b'", "a b"),
     ("{0..3}/x", "{0..3}/x"), ("{0..3}", "{0..3}"), ("[1", "[1"), ("a: b", "a: b"), ("#1", "#1"), ("a #b", "a #b"),
     ("*x", "*x"), ("- a", "- a"), ("http://h:5000", "http://h:5000"), ("a=b", "a=b"), (" 7 ", 7),
     ("9" * 5000, "9" * 5000)],
)  # fmt: skip
def test_values_on_the_command_line(text, value):
    assert parse_value(text) == value


def test_a_value_that_gives_a_key_twice():
    with pytest.raises(UserError, match="a is given twice"):
        parse_value("{a: 1, a: 2}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
        | st.text() | st.sampled_from(TWO_MEANINGS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)  # fmt: skip
def test_what_a_yaml_library_writes_is_read_as_it_was(value):
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "x") == value


@given(st.text() | st.binary())
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parse_yaml(text, "x")
    except UserError as error:
        assert "\n" not in str(error)
