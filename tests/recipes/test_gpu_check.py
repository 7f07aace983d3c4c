"""The whole script on the emulation: what it verifies, and that it notices what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from runtime.cuda.emulation import installed, needs_compiler

import fffconvert as fff
from fffconvert.runtime import cuda
from fffconvert.runtime.backend import Status
from recipes.experiments import gpu_check

FORM = {"branch_outputs": True, "leaf_width": 3, "leaf_gated": True}


def test_no_card_is_one_line_and_status_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "status", lambda: Status(False, "no NVIDIA driver found"))
    assert gpu_check.main(["--output", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err == "error: the cupy backend cannot run here: no NVIDIA driver found\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def card(monkeypatch):
    """Lets the script believe that the emulation is a card."""
    monkeypatch.setattr(cuda, "status", lambda: Status(True, "emulated"))
    monkeypatch.setattr(fff, "bench_layer", lambda model, **options: {"rows": [], **options})
    monkeypatch.setattr(gpu_check, "graphed", lambda call, x: call)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    small = {
        "DEVICE": "cpu",
        "D_MODEL": 16,
        "FORESTS": ((1, 2),),
        "DTYPES": ("float32", "bfloat16"),
        "TOKENS": (1, 5),
        "CALLS": 2,
        "SECONDS": 1e-6,
        "VERIFIED": (
            (16, 1, 3, {}),
            (17, 2, 2, {"branch_outputs": True, "leaf_width": 3, "leaf_gated": True}),
        ),
        "VERIFIED_TOKENS": (9,),
    }
    for name, value in small.items():
        monkeypatch.setattr(gpu_check, name, value)
    with installed() as cupy:
        yield cupy


@needs_compiler
def test_verifies_and_times_everything(card, tmp_path):
    few = cuda.FEW_TOKENS
    assert gpu_check.main(["--output", str(tmp_path / "out.json")]) == 0
    assert few == cuda.FEW_TOKENS
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["verified"]) == 16
    assert all(case["right"] and case["left_out"] < 0.5 for case in document["verified"])
    assert [(row["dtype"], row["tokens"]) for row in document["kernels"]] == [
        ("float32", 1), ("float32", 5), ("bfloat16", 1), ("bfloat16", 5)
    ]  # fmt: skip
    for row in document["kernels"]:
        assert all(row[f"{name}_us"] > 0 for name in ("few", "many", "few_graph", "many_graph"))
    assert document["layers"]["forests"] == [[1, 2]]
    assert document["layers"]["device"] == "cuda"


@needs_compiler
def test_wrong_outputs_are_reported(card, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "VERIFIED", ((16, 1, 3, {}),))
    monkeypatch.setattr(gpu_check, "TOKENS", (1,))
    card.edit = lambda source: source.replace("k < last; ++k", "k + 1 < last; ++k")
    assert gpu_check.main(["--quick", "--output", str(tmp_path / "out.json")]) == 1
    assert "wrong: {'width': 16" in capsys.readouterr().err
    cases = json.loads((tmp_path / "out.json").read_text())["verified"]
    for case in cases:
        unharmed = case["few_tokens_kernel"] or case["x"] == "bfloat16"  # tensor cores walk the top levels
        assert case["right"] == unharmed, case
