"""Tiny models with tokenizers, converted, and text for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fffconvert.conversion import convert_model
from fffconvert.options import ConvertOptions

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(a + b for a in "bcdfghklmn" for b in ("a", "e", "i", "o", "u"))
SIZES = {
    "vocab_size": 55,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,  # with the usual one, blocks of so few neurons give next to nothing
}


def write_texts(path: Path, count: int = 60, seed: int = 0) -> Path:
    """Sentences of a few words each, with blank lines between."""
    order = random.Random(seed)
    lines = [" ".join(order.choices(WORDS, k=order.randint(5, 14))) + " ." for _ in range(count)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    options: dict[str, Any] = dict(zip(names, SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **options)


def build(kind: str) -> PreTrainedModel:
    """A model with random weights, of the same each time."""
    torch.manual_seed(0)
    if kind == "causal":
        config = LlamaConfig(
            hidden_size=16, intermediate_size=32, num_key_value_heads=1, max_position_embeddings=64, **SIZES
        )
        return LlamaForCausalLM(config)
    config = BertConfig(hidden_size=16, intermediate_size=32, max_position_embeddings=64, **SIZES)
    return BertModel(config) if kind == "encoder" else BertForMaskedLM(config)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Callable[[str], Path]:
    """The folder of a converted model: masked, causal, or an encoder without a head."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            build(kind).save_pretrained(folder / "original")
            word_tokenizer().save_pretrained(folder / "original")
            options = ConvertOptions(
                depth=1, leaf_width=4, tokens=600, calibration=text, output=folder / "converted"
            )
            convert_model(str(folder / "original"), options)
            made[kind] = folder / "converted"
        return made[kind]

    return get
