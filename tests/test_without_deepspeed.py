"""DeepSpeed is its engine's and its own layer's affair: two files import it, and what only predicts does without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fgmoe_dist
from tests.runs import ROOT, environment

PACKAGE = Path(fgmoe_dist.__file__).parent


def imported(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_two_files_import_deepspeed():
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "deepspeed" in imported(path)}
    assert found == {"experts/backends/deepspeed.py", "training/engines/deepspeed.py"}


VERBS = """
import sys
sys.modules["deepspeed"] = None  # its import now fails
from fgmoe_dist.cli import main
from fgmoe_dist.checkpoints.checkpoint import load_model
run, photograph, config = sys.argv[1:]
_, _, state = load_model(run)
assert state.config["experts"]["backend"] == "deepspeed"
main(["plan", "--config", config])
main(["predict", "--checkpoint", run, "--input", photograph, "--output", f"{run}/predictions"])
main(["evaluate", "--checkpoint", run, "--workers", "0", "--json", f"{run}/scores.json"])
main(["export", "--checkpoint", run, "--format", "safetensors", "--output", f"{run}/model.safetensors"])
print("all done")
"""


@pytest.mark.slow
def test_a_run_of_its_layers_is_evaluated_and_exported_without_it(runs, tmp_path):
    runs.train("run", 1, tasks="[semseg]", train__steps=1, experts__backend="deepspeed", decoder__blocks=1)
    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(photograph)
    command = [sys.executable, "-c", VERBS, str(runs.folder("run")), str(photograph), str(runs.config_file)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.endswith("all done\n"), done.stderr
    for name in ("predictions/semseg/photograph.png", "scores.json", "model.safetensors"):
        assert (runs.folder("run") / name).is_file()
