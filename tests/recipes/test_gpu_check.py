"""The whole script on the emulation: what it verifies, and that it notices what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from runtime.cuda.emulation import installed, needs_compiler

from fffconvert.benchmarks import card as card_module
from fffconvert.benchmarks import gpu_check
from fffconvert.runtime import cuda
from fffconvert.runtime.backend import Status


def test_no_card_is_one_line_and_status_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "status", lambda: Status(False, "no NVIDIA driver found"))
    assert gpu_check.main(["--output", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err == "error: the cupy backend cannot run here: no NVIDIA driver found\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def card(monkeypatch):
    """Lets the script believe that the emulation is a card."""
    monkeypatch.setattr(cuda, "status", lambda: Status(True, "emulated"))
    monkeypatch.setattr(gpu_check, "describe", lambda: {"card": "emulated"})
    monkeypatch.setattr(gpu_check, "graphed", lambda call, x: call)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    small = {
        "DEVICE": "cpu",
        "D_MODEL": 16,
        "BLOCK": 32,
        "DEPTHS": (2,),
        "DTYPES": ("float32", "bfloat16"),
        "TOKENS": (1, 5),
        "COMPILED_TOKENS": (),
        "CALLS": 2,
        "SECONDS": 1e-6,
        "VERIFIED": ((16, 1, 3, {}), (17, 2, 2, {"branches": 2, "leaf_width": 3, "gated": True})),
        "VERIFIED_TOKENS": (9,),
    }
    monkeypatch.setattr(card_module, "COPIED_BYTES", 1 << 16)
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
    assert {"machine", "build_seconds", "bandwidth_gb_s", "published", "seconds"} <= document.keys()
    assert len(document["verified"]) == 16
    assert all(case["right"] and case["left_out"] < 0.5 for case in document["verified"])
    assert [(row["dtype"], row["tokens"]) for row in document["rows"]] == [
        ("float32", 1), ("float32", 5), ("bfloat16", 1), ("bfloat16", 5)
    ]  # fmt: skip
    for row in document["rows"]:
        for name in ("cupy", "cupy_few", "cupy_many", "reference", "block_eager", "tree_size_fused"):
            assert row[f"{name}_p20_us"] <= row[f"{name}_median_us"] <= row[f"{name}_p80_us"]
        assert row["speedup_vs_block"] > 0
        rows = min(row["tokens"] * 3, 7) * 2 + 2 * row["tokens"]
        assert row["least_bytes"] == rows * 16 * (4 if row["dtype"] == "float32" else 2)


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
