"""The package's order: data passes through the folders, and nothing imports what comes after it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fffconvert

PACKAGE = Path(fffconvert.__file__).parent
ROOT = PACKAGE.parent
ORDER = [
    "errors",
    "records",
    "cells",
    "figures",
    "native",
    "private_names",
    "processor",
    "activation_names",
    "forward",
    "planning.spec",
    "planning.file",
    "options",
    "runtime",
    "location",
    "planning",
    "tree",
    "store",
    "fit",
    "standins",
    "surgery",
    "hub",
    "conversion",
    "controls",
    "evaluation",
    "planning.search",
    "distillation",
    "deployment",
    "estimation",
    "benchmarks",
    "reporting",
    "inspection",
    "demo_pairs",
    "demo",
    "cli",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def place(*names: str) -> str:
    """The entry of `ORDER` for a module: its own if it has one, or that of its folder."""
    own = ".".join(names[:2])
    return own if own in ORDER else names[0]


def part(path: Path) -> str:
    return place(*path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports, wherever in the file, but for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    unused = {inner for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if node in unused:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "fffconvert" and len(pieces) > 1 and pieces[1] != "__version__":
                yield place(*pieces[1:])


def test_every_part_has_its_place():
    assert {part(path) for path in FILES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_what_comes_after_it(path: Path):
    own = part(path)
    if own != "__init__":
        later = {name for name in imported(path) if ORDER.index(name) > ORDER.index(own)}
        assert not later


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted((ROOT / "tests").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_short_enough_to_be_one_thing(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("module", ["cli", "records", "planning.spec", "planning.file"])
def test_the_package_and_its_command_line_and_specifications_start_without_torch(module: str):
    code = f"import sys, fffconvert.{module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_can_be_reached():
    assert all(getattr(fffconvert, name) is not None for name in fffconvert.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fffconvert.nothing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_named_as_a_function_that_it_holds(path: Path):
    """`import fffconvert.name as module` would bind the function."""
    name = path.parent.name if path.stem == "__init__" else path.stem
    tree = ast.parse(path.read_text(encoding="utf-8"))
    held = {
        alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names
    }
    held |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert name not in held
