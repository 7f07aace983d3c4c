"""The longest sequences that models take, against running them."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

from fffconvert.fit.length import UNLIMITED, longest, positions

SMALL = {"vocab_size": 34, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ENCODER = {**SMALL, "intermediate_size": 32, "max_position_embeddings": 34}
MODELS = {
    "bert": (lambda: BertModel(BertConfig(**ENCODER)), 34),
    "roberta": (lambda: RobertaModel(RobertaConfig(**ENCODER)), 32),
    "roberta with a head": (lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER)), 32),
    "roberta with another padding": (lambda: RobertaModel(RobertaConfig(**ENCODER, pad_token_id=3)), 30),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**ENCODER)), 32),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_positions=34, n_embd=16, n_layer=1, n_head=2, vocab_size=34)),
        34,
    ),
    "bart": (
        lambda: BartModel(
            BartConfig(
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                vocab_size=34,
                max_position_embeddings=34,
            )
        ),
        34,
    ),
}


def runs(model: nn.Module, length: int) -> bool:
    ids = torch.full((1, length), 7)
    try:
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_on_as_many_tokens_as_are_said_and_no_more(name: str):
    build, expected = MODELS[name]
    model = build()
    assert positions(model) == expected
    assert runs(model, expected)
    assert not runs(model, expected + 1)


def test_models_without_positions_and_wrappers_have_no_limit():
    t5 = T5EncoderModel(T5Config(vocab_size=34, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))
    assert positions(t5) == UNLIMITED
    assert positions(nn.Linear(2, 2)) == UNLIMITED


def test_less_than_was_wanted_is_said():
    roberta, words = MODELS["roberta"][0](), SimpleNamespace(model_max_length=512)
    with pytest.warns(UserWarning, match="length 64 is more than RobertaModel takes; it goes on with 32"):
        assert longest(roberta, words, 64, warn=True) == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert longest(roberta, words, 16, warn=True) == 16
        assert longest(roberta, None, 64) == 32
        assert longest(roberta, SimpleNamespace(model_max_length=20), 64) == 20
