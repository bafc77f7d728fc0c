"""compat: torchvision imports beside a CPU-only torch, and nothing is declared where nothing is wrong."""

import subprocess
import sys

import pytest
import torch

from fgmoe_dist import compat


def run_python(code: str) -> subprocess.CompletedProcess:
    """A fresh interpreter: what has been imported in this one cannot be undone."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_timm_imports_in_a_fresh_process_however_often_the_cure_is_taken():
    done = run_python(
        "from fgmoe_dist import compat\n"
        "first = compat.prepare_torchvision()\n"
        "assert compat.prepare_torchvision() is first\n"
        "timm = compat.import_timm()\n"
        "assert compat.import_timm() is timm and compat.prepare_torchvision() is first\n"
        "import torchvision.transforms\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_cure_works_after_a_failed_import_of_torchvision():
    done = run_python(
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from fgmoe_dist.compat import import_timm\n"
        "import_timm()\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def untouched(monkeypatch):
    """compat as in a process that has neither taken the cure nor imported torchvision; declaring anything fails."""

    def refuse(*args):
        raise AssertionError("schemas were declared")

    monkeypatch.setattr(compat, "_declared", [])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torch.library, "Library", refuse)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    return monkeypatch


def fail_to_load(path):
    raise OSError("libcudart.so.13: cannot open shared object file")


@pytest.mark.parametrize("platform", ["cuda", "hip"])
def test_accelerator_builds_keep_their_true_error(untouched, platform):
    untouched.setattr(torch.version, platform, "13.0", raising=False)
    untouched.setattr(torch.ops, "load_library", fail_to_load)
    assert compat.prepare_torchvision() is False


def test_a_torchvision_whose_operators_load_is_left_alone(untouched):
    untouched.setattr(torch.ops, "load_library", lambda path: None)
    assert compat.prepare_torchvision() is False


def test_an_imported_torchvision_is_left_alone(untouched):
    untouched.setitem(sys.modules, "torchvision", sys)
    untouched.setattr(torch.ops, "load_library", fail_to_load)
    assert compat.prepare_torchvision() is False


def test_an_absent_torchvision_is_left_to_its_importer(untouched):
    untouched.setattr(compat.importlib.util, "find_spec", lambda name: None)
    assert compat.prepare_torchvision() is False
