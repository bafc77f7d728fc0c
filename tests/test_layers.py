"""Packages are layers: what lies higher imports what lies lower, never the other way, so no circle can close.

Every import counts: at the head of a file, inside a function, and those for type checkers alone.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fgmoe_dist"

# From the ground up. Those in one line know nothing of each other.
LAYERS = """
    threads
    __init__ errors compat precision settings machine
    files plugins progress ranks yaml_files
    outputs
    arguments
    metrics drawing
    rooms labels
    tasks
    data experts
    decoders weighting
    config
    encoders
    model
    checkpoints
    evaluation tracking
    reports
    training
    planning
    benches export pruning
    train
    verbs
    cli
""".strip().splitlines()
HEIGHT = {name: height for height, line in enumerate(LAYERS) for name in line.split()}


def imports(path: Path) -> set[str]:
    """The packages and modules right below `fgmoe_dist` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports here are absolute"
            found |= {node.module} if node.module != "fgmoe_dist" else {f"fgmoe_dist.{a.name}" for a in node.names}
    return {name.split(".")[1] for name in found if name.startswith("fgmoe_dist.")} - {"__version__"}


def test_every_package_has_its_layer():
    packages = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert packages == set(HEIGHT)


def test_imports_go_down_only():
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE)
        own = file.with_suffix("").parts[0]
        wrong |= {f"{file} imports {name}" for name in imports(path) - {own} if HEIGHT[name] >= HEIGHT[own]}
    assert not wrong
