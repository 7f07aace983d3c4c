"""Scores of runtimes: the same as of the model itself, and refusals."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from fffconvert import hub
from fffconvert.benchmarks.model import inputs
from fffconvert.benchmarks.model.quality import Quality
from fffconvert.benchmarks.model.settings import ModelBench
from fffconvert.errors import FFFError
from fffconvert.evaluation.metrics import SPEARMAN
from fffconvert.evaluation.sentence import similarity

WORDS = "red blue cat dog runs sleeps a the".split()
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def saved(folder: Path, kind: type = BertModel, words: bool = True) -> Path:
    torch.manual_seed(0)
    kind(BertConfig(vocab_size=16, max_position_embeddings=32, **SIZES)).save_pretrained(folder)
    if words:
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Pairs of sentences, as a folder of data has them."""
    draw = random.Random(0)
    made = [
        {
            "sentence1": " ".join(draw.choices(WORDS, k=draw.randint(2, 6))),
            "sentence2": " ".join(draw.choices(WORDS, k=draw.randint(2, 6))),
            "label": round(draw.uniform(0, 5), 1),
        }
        for _ in range(20)
    ]
    (tmp_path / "data/glue/stsb").mkdir(parents=True)
    with gzip.open(tmp_path / "data/glue/stsb/test.labelled.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in made)
    return made


def quality(tmp_path: Path, model: Path, task: str = "sts-b") -> Quality:
    settings = ModelBench(
        model=str(model), sizes=((1, 4),), original=str(model), task=task, data_dir=tmp_path / "data"
    )
    inputs.write(tmp_path, (1, 4), {name: np.ones((1, 4), np.int64) for name in NAMES}, 16)
    return Quality(settings, dataclasses.asdict(settings), tmp_path)


def test_a_runtime_is_scored_as_the_model_that_it_runs(tmp_path: Path, rows: list[dict[str, Any]]):
    loaded = hub.load(str(saved(tmp_path / "model")))
    asked = []

    @torch.no_grad()
    def ask(what: str, inputs: str, output: str) -> None:
        asked.append(what)
        with np.load(inputs) as stored:
            assert tuple(stored.files) == NAMES
            arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        np.save(output, loaded.model.eval()(**arrays)[0].numpy())

    expected = SPEARMAN.compute(similarity(loaded.model, loaded.tokenizer, rows))
    assert quality(tmp_path, tmp_path / "model").score(ask) == pytest.approx(expected, abs=1e-6)
    assert set(asked) == {"run"}
    assert abs(expected) < 1


def test_refusals(tmp_path: Path, rows: list[dict[str, Any]]):
    with pytest.raises(FFFError, match="'rte'; expected one of sts-b"):
        quality(tmp_path, saved(tmp_path / "model"), "rte")
    with pytest.raises(FFFError, match="found one with logits"):
        quality(tmp_path, saved(tmp_path / "masked", BertForMaskedLM))
    with pytest.raises(FFFError, match="needs a tokenizer"):
        quality(tmp_path, saved(tmp_path / "mute", words=False))
    with pytest.raises(FFFError, match="expected a converted model"):
        ModelBench(model="bert-base", depth=2, task="sts-b")
