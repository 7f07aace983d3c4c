from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from fffconvert.benchmarks import contestants, dense
from fffconvert.cli import app

QUICK = ["--shape", "16x48", "--forests", "1x3", "--backends", "reference", "--no-compile"]
QUICK += ["--sizes", "1,5", "--seconds", "0.001", "--repeats", "3"]
CONTRACT = {
    "backend",
    "dtype",
    "threads",
    "tokens",
    "median_us",
    "p20_us",
    "p80_us",
    "speedup_vs_block",
    "speedup_vs_tree_size",
    "speedup_vs_int8_dense",
    "max_error",
    "skipped",
    "page_fault_us",
    "warm_output_us",
}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench-layer", *arguments])


def test_programs_get_one_document():
    result = run(*QUICK, "--forests", "1x3,2x2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert all(row.keys() >= CONTRACT for row in found["rows"])
    assert {row["layer"] for row in found["rows"]} == {"1x3", "2x2"}
    assert found.keys() == {
        "rows", "summary", "depths", "machine", "problems", "warnings", "published", "settings"
    }  # fmt: skip
    assert found["published"] is found["machine"]["card"] is None


@pytest.mark.parametrize("more", [[], ["--train"]], ids=["inference", "train"])
def test_people_get_tables(more):
    result = run(*QUICK, *more)
    assert result.exit_code == 0, result.output
    kind = "train" if more else "inference"
    assert f"1x3, 16x48, {kind}, random inputs, 1 thread" in result.stdout
    for word in ("tree_size eager", "geometric mean", "transparent huge pages", "torch.compile was left out"):
        assert word in result.stdout


def test_people_see_what_was_skipped_and_who_is_on(monkeypatch):
    monkeypatch.setattr(dense, "emulated", lambda: "no hardware for it")
    result = run(*QUICK)
    assert result.exit_code == 0, result.output
    assert "skipped: block in bfloat16: no hardware for it" in result.stdout
    assert "1x3, random inputs, 1 thread, 5 tokens: tree_size int8 eager" in result.stderr.splitlines()


def test_wrong_outputs_end_with_status_1(monkeypatch):
    right = contestants.deploy
    monkeypatch.setattr(contestants, "deploy", lambda layer, **rest: right(layer.apply(_spoil), **rest))
    result = run(*QUICK)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("fffconvert: WrongOutputError: backend reference")


def _spoil(layer: Any) -> None:
    layer.fff_in_bias.data += 0.01


BAD = {
    "sizes": ([*QUICK, "--sizes", "1,x"], "Invalid value for '--sizes': '1,x'; expected whole numbers"),
    "no sizes": ([*QUICK, "--sizes", ""], "Invalid value for '--sizes': ''"),
    "zero": ([*QUICK, "--sizes", "0"], "--sizes is 0; expected numbers from 1"),
    "shape": ([*QUICK, "--shape", "768"], "'--shape': '768'; expected two numbers with an x between"),
    "forests": ([*QUICK, "--forests", "8*8"], "'--forests': '8*8'"),
    "depth": ([*QUICK, "--forests", "1x40"], "depth is 40; expected an integer from 0 to"),
    "dtypes": ([*QUICK, "--dtypes", "half"], "--dtypes is 'half'"),
    "backends": ([*QUICK, "--backends", "gpu"], "--backends holds 'gpu'"),
    "device": ([*QUICK, "--device", "tpu"], "--device is 'tpu'; expected one of cpu,cuda"),
    "seconds": ([*QUICK, "--seconds", "0"], "--seconds is 0.0"),
    "plot": ([*QUICK, "--plot", "a.gif"], "--plot is a.gif; expected a name that ends in .png"),
    "model": (["./nowhere", *QUICK], "./nowhere"),
    "unknown": ([*QUICK, "--colour"], "--colour"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_one_line(case):
    arguments, message = BAD[case]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr
