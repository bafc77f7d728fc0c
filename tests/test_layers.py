"""Packages are layers: what lies higher imports what lies lower, never the other way, so no circle can close.

Every import counts: at the head of a file, inside a function, and those for type checkers alone.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fgmoe_dist"

# From the ground up. Those in one line know nothing of each other. A package that is named within another is a layer of
# its own.
LAYERS = """
    errors compat precision settings arguments machine
    files progress ranks
    metrics drawing rooms
    tasks data experts
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


def layer(name: str) -> str:
    """The layer that a module of the package belongs to; a name that has none is given back by its first part."""
    parts = name.split(".")
    inner = ".".join(parts[:2])
    return inner if inner in HEIGHT else parts[0]


def imports(path: Path) -> set[str]:
    """The layers that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports here are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {layer(name[len("fgmoe_dist.") :]) for name in found if name.startswith("fgmoe_dist.")} - {"__version__"}


def test_every_package_has_its_layer():
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == {
        "__init__", *(name for name in HEIGHT if "." not in name),
    }  # fmt: skip


def test_imports_go_down_only():
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE)
        own = layer(".".join(file.with_suffix("").parts))
        wrong |= {f"{file} imports {name}" for name in imports(path) - {own} if HEIGHT[name] >= HEIGHT.get(own, 0)}
    assert not wrong
