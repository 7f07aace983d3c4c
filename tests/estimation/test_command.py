"""The command `estimate`: tables for people, one document for programs, files, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fffconvert.cli import app
from fffconvert.options.estimate import Sweep


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["estimate", *(str(argument) for argument in arguments)])


def test_people_get_tables_and_sentences():
    result = run("bert-base", "--depth", 11, "--context", 128, "--hardware", "a100")
    assert result.exit_code == 0, result.output
    for word in ("341.25x", "256.00x", "2.85x", "0.2930%", "attention projections", "NVIDIA A100", "Up to"):
        assert word in result.stdout


def test_programs_get_one_document():
    found = json.loads(run("gpt2", "--phase", "decode", "--batch", 4, "--dtype", "int8", "--json").stdout)
    assert found["work"] == {"batch": 4, "context": 512, "phase": "decode"}
    assert found["roofline"] is None
    assert found["macs_per_token"]["total"] == sum(
        value for part, value in found["macs_per_token"].items() if part != "total"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no model was given"),
        (("bert-base", "--depth", 60), "depth is 60; expected an integer from 0 to 20"),
        (("bert-base", "--batch", -2), "batch is -2"),
        (("bert-base", "--hardware", "abacus"), "unknown hardware 'abacus'"),
        (("bert-base", "gpt2"), "2 models were given"),
        (("bert-base", "--csv", "x.csv"), "give --sweep"),
        (("bert-base", "--save-hardware", "x.json"), "give --hardware this"),
        (("bert-base", "--compare", "grid", "--hardware", "a100"), "runs the model here"),
        (("./nowhere",), "no model folder"),
        (("bert-base", "--phase", "sleep"), "Invalid value for '--phase'"),
    ],
)
def test_refusals_are_one_line(arguments: tuple[object, ...], message: str):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_the_list_names_models_and_machines_with_their_sources():
    found = json.loads(run("--list", "--json").stdout)
    assert {"gpt3-175b", "bert-base", "mixtral-8x7b", "whisper-small"} <= {
        row["name"] for row in found["models"]
    }
    assert {"t4", "a6000", "a100", "h100", "h200"} <= {row["name"] for row in found["hardware"]}
    assert all(row["source"] for rows in found.values() for row in rows)
    assert "gpt3-175b" in run("--list").stdout


@pytest.mark.parametrize("over", list(Sweep), ids=lambda over: over.value)
def test_sweeps_write_tables_csv_and_plots(over: Sweep, tmp_path: Path):
    table, picture = tmp_path / "rows.csv", tmp_path / "rows.png"
    names = ["all-minilm-l6-v2", "gpt2"]
    result = run(
        *names, "--sweep", over.value, "--hardware", "h100", "--csv", table, "--plot", picture, "--json"
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    with table.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    assert [row["model"] for row in read] == [row["model"] for row in rows]
    assert float(read[-1]["model_speedup"]) == rows[-1]["model_speedup"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    key = {"depth": "depth", "context": "context", "batch": "batch", "model": "model"}[over.value]
    mine = [row[key] for row in rows if row["model"] == "gpt2"]
    assert len(set(mine)) == len(mine) >= (1 if over is Sweep.MODEL else 10)
    assert all(row["model_speedup"] <= row["model_speedup_limit"] for row in rows)


def test_a_sweep_prints_a_table():
    result = run("gpt2", "--sweep", "batch", "--phase", "decode")
    assert result.exit_code == 0, result.output
    assert "4,096" in result.stdout


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path):
    result = run("gpt2", "--sweep", "depth", "--csv", tmp_path / "no" / "x.csv")
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    result = run("gpt2", "--sweep", "depth", "--plot", tmp_path / "x.doc")
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
