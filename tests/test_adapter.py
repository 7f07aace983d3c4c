"""Commands out of options: every kind of field as a flag, and errors in the words of the command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from options.test_fields import VERBS
from typer.main import get_command
from typer.testing import CliRunner

from fffconvert import store
from fffconvert.cli import app
from fffconvert.cli.adapter import command
from fffconvert.cli.running import with_flags
from fffconvert.options import BenchLayerOptions, ConvertOptions, EvaluateOptions, TextSource

COMMANDS: Any = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", VERBS)
def test_a_command_takes_the_options_of_its_verb(name: str):
    flags = {parameter.name for parameter in COMMANDS[name.replace("_", "-")].params}
    fields = {f.name for f in dataclasses.fields(VERBS[name]) if not f.metadata.get("python")}
    assert fields <= flags


def parsed(options: Any, *arguments: str) -> Any:
    """What a command gets for its options."""
    own, got = typer.Typer(), []

    @command(own, options, "run")
    def run(out: Any, *, options: Any) -> None:
        """Run."""
        got.append(options)

    @own.command()
    def other() -> None:
        """Makes `run` a command among others."""

    result = CliRunner().invoke(own, ["run", *arguments])
    assert result.exit_code == 0, result.output
    return got[0]


def test_flags_become_values():
    found = parsed(
        BenchLayerOptions, "--sizes", "1, 8", "--forests", "1x11,8x8", "--shape", "16x48", "--no-compile"
    )
    assert (found.sizes, found.forests, found.shape, found.compile) == (
        (1, 8),
        ((1, 11), (8, 8)),
        (16, 48),
        False,
    )
    assert found == BenchLayerOptions(sizes=(1, 8), forests=((1, 11), (8, 8)), shape=(16, 48), compile=False)
    text = ["--calibration", "a.txt", "--calibration", "wiki:en", "--layer", "paper", "--include", "a,b"]
    found = parsed(ConvertOptions, "-o", "out", "--depth", "3", *text)
    assert found.calibration == ["a.txt", "wiki:en"]
    assert all(isinstance(source, TextSource) for source in found.calibration)
    assert (found.output, found.include, found.layer.value) == (Path("out"), ("a,b",), "paper")
    found = parsed(EvaluateOptions, "--task", "a", "--task", "b", "--control", "dense=x=y")
    assert found == EvaluateOptions(("a", "b"), controls={"dense": "x=y"})


def test_errors_name_flags():
    flags = {"max_drop": "--max-drop", "overwrite": "--overwrite", "tasks": "--task"}
    message = "`max_drop=0.1` or `overwrite=True`, `overwrite=False`, `tasks`; `other` and `save_pretrained`"
    expected = "--max-drop 0.1 or --overwrite, --no-overwrite, --task; `other` and `save_pretrained`"
    assert with_flags(message, flags) == expected


def cache(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["cache", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_what_is_stored_is_listed_and_cleared():
    assert cache()["rows"] == []
    for key in ("a", "b"):
        assert store.once("evaluations", key, lambda: {"value": 1.0}) == {"value": 1.0}
    assert store.once("evaluations", "a", lambda: {"value": 2.0}) == {"value": 1.0}
    layers = store.folder_of("layers") / "one"
    layers.mkdir(parents=True)
    (layers / "x.safetensors").write_bytes(b"1234")
    found = cache()
    assert {row["kind"]: row["entries"] for row in found["rows"]} == {"evaluations": 2, "layers": 1}
    assert found["bytes"] == sum(row["bytes"] for row in found["rows"]) > 4
    assert found["folder"] == str(store.root())
    assert cache("--older-than", 1)["rows"] == []
    assert cache("--kind", "evaluations", "--clear")["cleared"]
    assert [row["kind"] for row in cache()["rows"]] == ["layers"]
    cache("--clear")
    assert cache()["rows"] == []
    assert not layers.exists()


def test_options_need_no_torch():
    code = "import sys, fffconvert.options; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
