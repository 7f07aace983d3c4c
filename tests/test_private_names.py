"""Private names of torch and transformers stand in one module, and the installed releases still have them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fffconvert
from fffconvert import private_names
from fffconvert.private_names import ATEN, ATTRIBUTES, IMPORTED

PACKAGE = Path(fffconvert.__file__).parent
FILES = sorted(set(PACKAGE.rglob("*.py")) - {Path(private_names.__file__)})
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
LISTED = {private.name for private in (*IMPORTED, *ATTRIBUTES)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier()


def defined() -> Iterator[str]:
    """Private names that the package itself gives: functions, attributes that it sets on itself, fields."""
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self":
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


OWN = {name for name in defined() if is_private(name)} - LISTED


def foreign(tree: ast.AST) -> Iterator[str]:
    """Private names that are none of the package's own, as attributes, in imports and in `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in ("aten", "torch.ops.aten") and node.attr in ATEN:
                continue
            if node.attr not in OWN | NAMED_TUPLE and owner not in ("self", "super()"):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module.split(".")[0] in ("fffconvert", "__future__"):
                continue
            for name in (f"{module}.{alias.name}" for alias in node.names):
                if any(map(is_private, name.split("."))):
                    yield name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            if isinstance(node.args[1], ast.Constant) and is_private(node.args[1].value):
                if node.args[1].value not in OWN:
                    yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_are_used_through_their_module(path: Path):
    assert list(foreign(TREES[path])) == []


def test_a_private_name_elsewhere_is_found():
    code = "import torch\nfrom torch import _VF\nx._storage_of\ntorch._C._f()\naten._new\ngetattr(x, '_odd')"
    assert set(foreign(ast.parse(code))) == {
        "torch._VF", "x._storage_of", "torch._C", "torch._C._f", "aten._new", "getattr(x, '_odd')"
    }  # fmt: skip


def test_what_classes_override_or_call_on_themselves_is_listed():
    missing = set()
    for found in pkgutil.walk_packages(fffconvert.__path__, "fffconvert."):
        try:
            module = importlib.import_module(found.name)
        except ModuleNotFoundError:  # of an extra that is not installed
            continue
        for cls in vars(module).values():
            if not (inspect.isclass(cls) and cls.__module__ == found.name):
                continue
            theirs = [b for b in cls.__mro__ if b.__module__.split(".")[0] in ("torch", "transformers")]
            if theirs:
                methods = {name for name, value in vars(cls).items() if inspect.isfunction(value)}
                used = {*methods, *self_attributes(cls)}
                missing |= {n for n in used if is_private(n) and any(n in vars(b) for b in theirs)}
    assert missing <= LISTED


def self_attributes(cls: type) -> Iterator[str]:
    """Names that a class looks up on itself."""
    for node in ast.walk(TREES[Path(inspect.getfile(cls))]):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in ("self", "super()"):
                    yield inner.attr


@pytest.mark.parametrize("private", IMPORTED, ids=lambda private: private.name)
def test_the_installed_releases_have_what_is_imported(private):
    assert getattr(private_names, private.name) is pkgutil.resolve_name(private.path)


@pytest.mark.parametrize("private", ATTRIBUTES, ids=lambda private: private.path)
def test_the_installed_releases_have_the_attributes(private):
    owner = pkgutil.resolve_name(private.path.rpartition(".")[0])
    assert hasattr(owner, private.name) or f"self.{private.name}" in inspect.getsource(owner)


@pytest.mark.parametrize("name", ATEN)
def test_the_installed_torch_has_the_operations(name):
    assert hasattr(torch.ops.aten, name)


def test_the_module_imports_neither():
    code = "import sys, fffconvert.private_names; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = private_names.nothing
