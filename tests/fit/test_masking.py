"""Which models are shown masks, and which tokens are masked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from fffconvert.fit.masking import masked_tokens, with_masks

MASK, SPECIAL = 4, [0, 1, 2, 3, 4]
TOKENIZER = SimpleNamespace(mask_token_id=MASK, all_special_ids=SPECIAL)
IDS = torch.cat([torch.ones(50, 1, dtype=torch.long), torch.arange(5, 105).repeat(50, 1)], 1)


def tiny(cls: type[nn.Module]) -> nn.Module:
    return cls(
        BertConfig(
            vocab_size=120, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
        )
    )


def test_special_tokens_are_never_masked_and_15_percent_of_the_others_are():
    masked, chosen = masked_tokens(IDS, MASK, SPECIAL, torch.Generator().manual_seed(0))
    assert not chosen[:, 0].any()
    assert chosen[:, 1:].float().mean() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(masked == MASK, chosen)
    assert torch.equal(masked[~chosen], IDS[~chosen])


def test_masked_language_models_are_calibrated_on_masks_and_others_are_not():
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    (shown,) = with_masks(tiny(BertForMaskedLM), TOKENIZER, [batch], 0)
    assert (shown["input_ids"] == MASK).float().mean() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(shown["attention_mask"], batch["attention_mask"])
    assert not (batch["input_ids"] == MASK).any()
    (again,) = with_masks(tiny(BertForMaskedLM), TOKENIZER, [batch], 0)
    assert torch.equal(again["input_ids"], shown["input_ids"])
    (plain,) = with_masks(tiny(BertModel), TOKENIZER, [batch], 0)
    assert torch.equal(plain["input_ids"], IDS)
    unmaskable = SimpleNamespace(mask_token_id=None, all_special_ids=SPECIAL)
    (plain,) = with_masks(tiny(BertForMaskedLM), unmaskable, [batch], 0)
    assert torch.equal(plain["input_ids"], IDS)
