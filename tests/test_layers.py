"""Packages are layers: what lies higher imports what lies lower, never the other way, so no circle can close.

Every import counts: at the head of a file, inside a function, and those for type checkers alone.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fgmoe_dist"

# From the ground up. Those in one line know nothing of each other.
LAYERS = """
    errors compat precision settings machine
    files progress ranks
    outputs
    arguments
    metrics drawing
    rooms labels
    tasks
    data experts
    decoders training.weighting
    config
    encoders
    model
    checkpoints
    evaluation tracking
    reports
    training
    planning
    benches export
    train
    verbs
    cli
""".strip().splitlines()
HEIGHT = {name: height for height, line in enumerate(LAYERS) for name in line.split()}


def layer(module: str) -> str:
    """The name in `LAYERS` of a module below `fgmoe_dist`: its package's, or that of a part with a layer of its own."""
    part = ".".join(module.split(".")[:2])
    return part if part in HEIGHT else module.split(".")[0]


def imports(path: Path) -> set[str]:
    """The layers that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports here are absolute"
            found |= {node.module} if node.module != "fgmoe_dist" else {f"fgmoe_dist.{a.name}" for a in node.names}
    ours = (name.removeprefix("fgmoe_dist.") for name in found if name.startswith("fgmoe_dist."))
    return {layer(name) for name in ours} - {"__version__"}


def test_every_package_has_its_layer():
    packages = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert packages == {"__init__", *(name for name in HEIGHT if "." not in name)}


def test_imports_go_down_only():
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE)
        own = layer(".".join(file.with_suffix("").parts))
        wrong |= {f"{file} imports {name}" for name in imports(path) - {own} if HEIGHT[name] >= HEIGHT.get(own, 0)}
    assert not wrong
