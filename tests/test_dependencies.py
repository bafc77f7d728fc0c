"""Whatever the package imports is declared in setup.cfg, and whatever is declared there is imported."""

from __future__ import annotations

import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[1]

# Declared and not imported by name: whom they serve.
SERVE_OTHERS = {
    "torchvision": "timm imports it; it has to be of the release that fits torch",
    "onnxscript": "torch.onnx.export",
}
# Imported and not declared: who brings it.
BROUGHT = {
    "pydantic-core": "pydantic, whose validators raise its errors",
    "pyedgeeval": "an interpreter of the user's own, in which no other module of ours runs",
}


def imported() -> dict[str, str]:
    """By the name that a distribution is installed under: a file that imports from it."""
    distributions = packages_distributions()
    found = {}
    for path in sorted((ROOT / "fgmoe_dist").rglob("*.py")):
        for module in modules(ast.parse(path.read_text())):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "fgmoe_dist":
                names = {plain(name) for name in distributions.get(top, [top])}
                found[plain(top) if plain(top) in names else min(names)] = str(path.relative_to(ROOT))
    return found


def modules(tree: ast.Module) -> Iterator[str]:
    """Every import, at the head of a file or inside a function, and `import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports here are absolute"
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (word.value for word in node.args if isinstance(word, ast.Constant))


def declared(*extras: str) -> set[str]:
    file = ConfigParser()
    file.read(ROOT / "setup.cfg")
    lists = [file["options"]["install_requires"], *(file["options.extras_require"][extra] for extra in extras)]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    names = {re.match(r"[\w.-]+", line)[0] for line in lines if line and not line.startswith("#")}
    return {plain(name) for name in names} - {"fgmoe-dist"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared():
    known = declared("demo", "export", "dev") | BROUGHT.keys()
    assert {name: path for name, path in imported().items() if name not in known} == {}


def test_what_is_declared_is_imported():
    assert declared("demo", "export") - imported().keys() == SERVE_OTHERS.keys()
