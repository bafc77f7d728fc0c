"""Plug-ins as they are loaded: by name, by file, by an installed distribution; and what is told of a wrong one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fgmoe_dist import plugins
from fgmoe_dist.config import build_config
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.errors import UserError
from fgmoe_dist.training.weighting import WEIGHTING
from tests.plugged import example, plugged
from tests.runs import ROOT, environment

METHOD = """
from fgmoe_dist.training.weighting import WEIGHTING
from fgmoe_dist.training.weighting.fixed import Fixed

class {name}(Fixed):
    pass

"""
METHOD_BY_NAME = METHOD + "WEIGHTING['{key}'] = {name}\n"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and a process without plug-ins, which it is again afterwards."""
    monkeypatch.chdir(tmp_path)
    with plugged():
        yield tmp_path


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_seam_is_a_dictionary_of_the_package():
    for seam in plugins.SEAMS:
        assert type(plugins._dictionary(seam)) is dict and plugins._dictionary(seam), seam


def test_a_file_a_module_of_this_folder_and_the_environment(here, monkeypatch):
    write(here, "first_method.py", METHOD_BY_NAME.format(name="First", key="first"))
    (here / "elsewhere").mkdir()
    second = write(
        here / "elsewhere", "second_method.py", METHOD + "def register():\n    WEIGHTING['second'] = {name}\n"
    )
    (here / "elsewhere/second_method.py").write_text(Path(second).read_text().format(name="Second"))
    third = write(here, "third_method.py", METHOD_BY_NAME.format(name="Third", key="third"))
    monkeypatch.setenv("FGMOE_PLUGINS", "third_method.py")
    words = ["--config", "a.yaml", "--plugin", "first_method", "--set", "x=1", "--plugin=elsewhere/second_method.py"]
    assert plugins.take(words) == ["--config", "a.yaml", "--set", "x=1"]
    assert [WEIGHTING[key].__name__ for key in ("first", "second", "third")] == ["First", "Second", "Third"]
    assert os.environ["FGMOE_PLUGINS"] == f"{third},first_method,{second}", "so that a child in any folder finds them"
    assert [plugin.adds for plugin in plugins.loaded()] == [
        ("weighting method third",), ("weighting method first",), ("weighting method second",)
    ]  # fmt: skip
    before = WEIGHTING["first"]
    assert plugins.take(["--plugin", "first_method"]) == [] and WEIGHTING["first"] is before, "once"


def test_what_a_run_says_of_its_plug_ins(here):
    write(here, "told.py", "__version__ = '1.5'\n" + METHOD_BY_NAME.format(name="Told", key="told"))
    plugins.load("told", example("linear"))
    told, linear = plugins.loaded()
    assert str(told) == "told 1.5" and linear.name == "linear"
    assert linear.version.startswith("sha256:") and len(linear.version) == len("sha256:") + 12
    assert plugins.notes() == ["plug-in told 1.5: weighting method told", f"plug-in {linear}: decoder linear"]
    from fgmoe_dist.tracking.tags import run_tags

    assert run_tags(1, 1)["plugins"] == f"told 1.5, {linear}"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("none.py", None, "plug-in .*none.py: cannot be loaded: there is no such file"),
        ("absent", None, "plug-in absent: cannot be loaded: ModuleNotFoundError: No module named 'absent'"),
        ("broken.py", "1 / 0\n", r"plug-in .*broken.py: cannot be loaded: ZeroDivisionError: .*\(.*broken.py, line 1\)"),
        ("bad.py", "x = = 1\n", "plug-in .*bad.py: cannot be loaded: SyntaxError: invalid syntax"),
        ("quits.py", "raise SystemExit\n", "plug-in .*quits.py: cannot be loaded: SystemExit"),
        ("json.py", "x = 1\n", r"plug-in .*json.py: cannot be loaded: another module has its name \(.*/json/"),
        ("takes.py", METHOD_BY_NAME.format(name="Takes", key="fixed"),
         "plug-in .*takes.py: there is a weighting method fixed already; give its own another name"),
        ("drops.py", METHOD.format(name="Drops") + "del WEIGHTING['dwa']\n", "there is a weighting method dwa already"),
        ("a,b", None, "--plugin a,b: a comma stands between plug-ins in FGMOE_PLUGINS"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_told_in_one_line_and_leaves_nothing(here, name, text, why):
    if text is not None:
        write(here, name, text)
    before = dict(WEIGHTING)
    with pytest.raises(UserError, match=why) as caught:
        plugins.take(["--plugin", name])
    assert "\n" not in str(caught.value)
    assert before == WEIGHTING and plugins.loaded() == []


def test_the_same_object_may_be_put_there_again_and_another_s_name_may_not(here):
    write(here, "mine.py", METHOD_BY_NAME.format(name="Mine", key="mine"))
    write(here, "again.py", "from mine import Mine, WEIGHTING\nWEIGHTING['mine'] = Mine\n")
    write(here, "theirs.py", METHOD_BY_NAME.format(name="Theirs", key="mine"))
    plugins.load("mine", "again")
    assert [plugin.adds for plugin in plugins.loaded()] == [("weighting method mine",), ()]
    with pytest.raises(UserError, match="plug-in theirs: there is a weighting method mine already"):
        plugins.load("theirs")
    assert WEIGHTING["mine"].__name__ == "Mine"


def test_an_option_without_a_value(here):
    with pytest.raises(UserError, match="--plugin: names nothing; give a module"):
        plugins.take(["train", "--plugin"])


def test_an_unregistered_name_asks_for_its_plug_in():
    for values, told in (
        ({"decoder": {"kind": "linear"}}, "decoder.kind='linear': no such kind"),
        ({"tasks": ["warmth"]}, "tasks.0='warmth': no such task"),
        ({"train": {"weighting": {"kind": "lottery"}}}, "train.weighting.kind='lottery': no such kind"),
        ({"experts": {"router": "cosine"}}, "experts.router=cosine: there is no such router"),
    ):
        with pytest.raises(UserError, match=f"^{told}.*; what a plug-in adds is known with --plugin$"):
            build_config(values)


def test_a_pickle_that_begins_with_them_loads_them_where_it_is_read(here):
    """As a worker has it that was started afresh: `register` is called there before anything else is read."""
    write(here, "called.py", METHOD.format(name="Called") + "def register():\n    WEIGHTING['called'] = Called\n")
    plugins.load("called")
    (here / "work").write_bytes(pickle.dumps((plugins.Plugged(), WEIGHTING["called"])))
    program = (
        "import pickle, sys; sys.path.append('.')\n"
        "_, method = pickle.load(open('work', 'rb'))\n"
        "from fgmoe_dist.training.weighting import WEIGHTING; from fgmoe_dist import plugins\n"
        "print(WEIGHTING['called'] is method, *plugins.loaded()[0].adds)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment(), cwd=here)
    assert done.stdout == "True weighting method called\n", done.stderr


def test_a_configuration_of_a_plug_in_s_parts_reaches_other_processes(here):
    plugins.load(example("linear"), example("lottery"))
    config = build_config({"decoder": {"kind": "linear"}, "train": {"weighting": {"kind": "lottery", "spread": 2.0}}})
    again = pickle.loads(pickle.dumps(config))
    assert again == config and type(again.decoder) is DECODERS["linear"].Settings


def fgmoe(*words: object, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fgmoe_dist.cli", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True)


DISTRIBUTION = {
    "thirds-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thirds\nVersion: 2.0\n",
    "thirds-2.0.dist-info/entry_points.txt": "[fgmoe_dist.plugins]\nthirds = thirds.methods:add\n",
    "thirds/__init__.py": "",
    "thirds/methods.py": METHOD.format(name="Thirds") + "def add():\n    WEIGHTING['thirds'] = Thirds\n",
}


def test_an_installed_distribution_needs_no_option(tmp_path):
    for name, text in DISTRIBUTION.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    program = (
        "from fgmoe_dist import plugins; assert plugins.take(['--dry-run']) == ['--dry-run']\n"
        "print(*plugins.notes())\n"
        "import pickle; pickle.loads(pickle.dumps(plugins.Plugged()))"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH=path), cwd=tmp_path)
    assert done.stdout == "plug-in thirds.methods:add 2.0: weighting method thirds\n", done.stderr


def test_a_verb_has_them_before_it_reads_its_configuration(tmp_path):
    config = ["--config", "configs/demo.yaml", "--set", "decoder.kind=linear", "--print-config"]
    broken = write(tmp_path, "broken.py", "import nothing_of_the_kind\n")
    done = fgmoe("train", *config, "--plugin", broken)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: plug-in {broken}: cannot be loaded: ModuleNotFoundError: No module named")
    done = fgmoe("train", *config, FGMOE_PLUGINS=example("linear"))
    assert done.returncode == 0 and "kind: linear" in done.stdout and "experts:" not in done.stdout, done.stderr
