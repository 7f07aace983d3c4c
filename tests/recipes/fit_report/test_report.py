"""The fit report: what it measures of blocks and of models, and what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner
from zoo import ARCHITECTURES

import fffconvert as fff
from fffconvert.controls import Control
from recipes.experiments.fit_report import blocks, tables
from recipes.experiments.fit_report.__main__ import report
from recipes.experiments.fit_report.models import Comparison, compare_models

WORDS = "a the cat dog runs sleeps under over old new quick river market opens closed early".split()


def test_one_block_in_every_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "LARGE", 12)
    monkeypatch.setattr(blocks, "LEAF_DEPTH", 1)
    monkeypatch.setattr(blocks, "PATH_DEPTH", 3)
    case = next(case for case in ARCHITECTURES if case.name == "bert")
    site = fff.locate(case.build(), case.inputs())[0]
    x = torch.randn(3000, site.d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = site.dense()(x)
    own, held, test = ((x[part], y[part]) for part in (slice(2200), slice(2200, 2500), slice(2500, None)))
    rows = blocks.compare_block(site, own, held, test, blocks.Effort(2, 1))
    assert set(rows) == set(tables.WAYS)
    assert rows["leaves"]["active_width"] == 12
    assert rows["leaves"]["error"] < rows["leaves_random_routing"]["error"]
    assert all(row["error"] == pytest.approx(row["token_error"], abs=0.3) for row in rows.values())
    mean = blocks.mean([rows, rows])
    assert mean == rows
    shown = list(tables.report({"blocks": {"blocks": {site.name: rows}, "mean": mean}}))
    assert [table.row_count for table in shown] == [len(tables.WAYS), len(tables.GOALS)]


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, pad_token_id=1,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "encoder")
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    ).save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_a_model_beside_its_original_and_controls(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FFFCONVERT_CACHE", str(tmp_path / "cache"))
    draw = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(16, (12,), generator=draw)) for _ in range(80)]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    (tmp_path / "glue" / "stsb").mkdir(parents=True)
    with gzip.open(tmp_path / "glue" / "stsb" / "test.labelled.jsonl.gz", "wt") as file:
        for index, (one, other) in enumerate(zip(texts[:20], texts[20:], strict=False)):
            file.write(json.dumps({"sentence1": one, "sentence2": other, "label": index % 6}) + "\n")
    kinds = (Control.DENSE, Control.ABLATED, Control.RANDOM_ROUTING)
    chosen = Comparison(encoder, "sts-b", ("text.txt",), 500, {"small": {"depth": 2}}, {"lines": True}, kinds)
    effort = {"tokens": 500, "passes": 1, "limit": None}
    found = compare_models(chosen, tmp_path, tmp_path / "work", **effort)
    assert list(found["models"]) == ["original", "small", "dense", "ablated", "random-routing"]
    small = found["models"]["small"]
    assert small["retained"] == pytest.approx(small["value"] / found["models"]["original"]["value"])
    assert small["active"] < small["stored"]
    (folder,) = (tmp_path / "work").iterdir()
    written = (folder / "config.json").stat().st_mtime_ns
    assert compare_models(chosen, tmp_path, tmp_path / "work", **effort) == found
    assert (folder / "config.json").stat().st_mtime_ns == written
    (table,) = tables.report({"sts": found})
    assert table.row_count == 5


def test_missing_text_is_one_line(tmp_path: Path):
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, ["--data", str(tmp_path), "--only", "sts"])
    assert result.exit_code == 2
    assert "error: calibration file" in result.stderr
    assert "does not exist" in result.stderr
