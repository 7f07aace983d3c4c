"""Tiny models of random weights, with a tokenizer, and task data as in a data folder."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from fffconvert.evaluation import metrics

WORDS = [f"{first}{second}" for first in "bdfgkl" for second in ("a", "e", "i", "o", "u")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLASSES = {"encoder": BertModel, "masked": BertForMaskedLM}


def sentence(rng: random.Random, least: int = 3, most: int = 9) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make(kind: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if kind == "causal":
        sizes = {**SIZES, "tie_word_embeddings": False}
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=64, **sizes)).eval()
    config = BertConfig(vocab_size=40, initializer_range=0.3, max_position_embeddings=64, **SIZES)
    return CLASSES[kind](config).eval()


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals as a whole are checked in `test_metrics.py`."""
    monkeypatch.setattr(metrics, "RESAMPLES", 100)


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """Make a tiny model: "encoder", "masked" or "causal"."""
    return make


@pytest.fixture
def sentences() -> Callable[..., list[str]]:
    """Draw sentences of the tiny vocabulary."""
    rng = random.Random(1)
    return lambda count, *lengths: [sentence(rng, *lengths) for _ in range(count)]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertConfig(**SIZES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Any:
    return AutoTokenizer.from_pretrained(vocabulary)


@pytest.fixture
def save(tmp_path: Path, vocabulary: Path) -> Callable[..., Path]:
    """Write a tiny model with its tokenizer to a folder."""

    def write(kind: str, seed: int = 0) -> Path:
        folder = tmp_path / f"{kind}-{seed}"
        make(kind, seed).save_pretrained(folder)
        if kind == "causal":
            AutoTokenizer.from_pretrained(vocabulary).save_pretrained(folder)
        else:
            (folder / "vocab.txt").write_text((vocabulary / "vocab.txt").read_text())
        return folder

    return write


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder: similarity, retrieval, a classification set, text."""
    rng, folder = random.Random(0), tmp_path / "data"
    pairs = [
        {"sentence1": sentence(rng), "sentence2": sentence(rng), "label": round(rng.uniform(0, 5), 1)}
        for _ in range(40)
    ]
    write_rows(folder / "glue/stsb/test.labelled.jsonl.gz", pairs)
    write_rows(
        folder / "embed/sts12.jsonl.gz",
        [{**pair, "split": "test" if number % 2 else "train"} for number, pair in enumerate(pairs)],
    )
    place = folder / "embed/cranfield"
    write_rows(
        place / "docs.jsonl.gz",
        ({"idx": n, "title": sentence(rng), "text": sentence(rng)} for n in range(1, 31)),
    )
    write_rows(place / "queries.jsonl.gz", ({"idx": n, "text": sentence(rng)} for n in range(1, 8)))
    write_rows(
        place / "qrels.jsonl.gz",
        [{"query": n, "doc": rng.randint(1, 30), "rel": rng.choice([1, 2, 3, 4, -1])} for n in range(1, 7)]
        + [{"query": n, "doc": n, "rel": 1} for n in range(1, 7)],
    )
    write_rows(
        folder / "classify/subj/all.jsonl.gz",
        ({"text": f"{'ba bo' if n % 2 else 'lu li'} {sentence(rng)}", "label": n % 2} for n in range(60)),
    )
    text = "\n\n".join(sentence(rng, 6, 30) for _ in range(30))
    (folder / "text/wikitext2").mkdir(parents=True)
    (folder / "text/wikitext2/wiki.test.raw.txt").write_text(text)
    return folder
