"""Attention in bfloat16: against softmax by hand, with every kind of mask, and in whole models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from fffconvert.hub.attention import SHORT, bfloat16_attention, use_bfloat16_attention
from fffconvert.hub.deployment import Deployment, apply
from fffconvert.hub.hooks import BFLOAT16_ATTENTION
from fffconvert.records import plain, read

TOKENS, HEADS, WIDTH = SHORT + 6, 4, 16
BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(query: Tensor, key: Tensor, value: Tensor, added: Tensor | float) -> Tensor:
    """[batch, tokens, heads, width]"""
    scores = query.double() @ key.double().transpose(-1, -2) / math.sqrt(WIDTH) + added
    return (scores.softmax(-1) @ value.double()).transpose(1, 2)


def mask(kind: str) -> tuple[Tensor | None, Tensor | float, dict[str, object]]:
    """What is given, what it adds to the scores, and further options."""
    late = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    causal = torch.zeros(TOKENS, TOKENS).masked_fill(late, -torch.inf)
    seen = torch.rand(2, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) < 0.7
    bias = draw(1, HEADS, TOKENS, TOKENS, seed=4)
    match kind:
        case "boolean":
            return seen, torch.zeros(seen.shape).masked_fill(~seen, -torch.inf), {"is_causal": False}
        case "added":
            return bias, bias, {"is_causal": False}
        case "causal":
            return None, causal, {"is_causal": True}
        case "position bias":
            return None, bias, {"is_causal": False, "position_bias": bias}
    return None, 0.0, {"is_causal": False}


@pytest.mark.parametrize("kind", ["none", "boolean", "added", "causal", "position bias"])
def test_agrees_with_softmax_by_hand(kind: str):
    query, key, value = (draw(2, HEADS, TOKENS, WIDTH, seed=seed) for seed in range(3))
    given, added, options = mask(kind)
    y, _ = bfloat16_attention(nn.Module(), query, key, value, given, **options)
    assert y.dtype == torch.float32
    expected = by_hand(query, key, value, added)
    assert y.shape == expected.shape
    assert (y - expected).norm() < 0.01 * expected.norm()


def test_few_tokens_and_other_types_are_left_alone():
    few = draw(1, HEADS, SHORT - 1, WIDTH)
    y, _ = bfloat16_attention(nn.Module(), few, few, few, None, is_causal=False)
    assert (y - by_hand(few, few, few, 0.0)).abs().max() < 1e-5
    double = draw(1, HEADS, TOKENS, WIDTH).double()
    y, _ = bfloat16_attention(nn.Module(), double, double, double, None, is_causal=False)
    assert (y - by_hand(double, double, double, 0.0)).abs().max() < 1e-12


def encoder() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=50, **BERT)).eval()


def causal() -> LlamaForCausalLM:
    """Two heads of keys for four of queries."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **BERT)).eval()


@torch.no_grad()
@pytest.mark.parametrize("make", [encoder, causal])
def test_a_whole_model_hardly_changes(make):
    model, ids = make(), torch.randint(0, 50, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    padded = torch.ones_like(ids)
    padded[0, -9:] = 0
    before = model(input_ids=ids, attention_mask=padded)[0]
    assert use_bfloat16_attention(model)
    after = model(input_ids=ids, attention_mask=padded)[0]
    seen = padded.bool()
    change = (after - before)[seen].norm() / before[seen].norm()
    assert 0 < change < 0.02


@torch.no_grad()
def test_generation_goes_on():
    model, ids = causal(), torch.randint(0, 50, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    use_bfloat16_attention(model)
    whole = model(ids).logits[:, -1]
    cached = model(ids[:, :-1], use_cache=True)
    step = model(ids[:, -1:], past_key_values=cached.past_key_values).logits[:, -1]
    assert (whole - step).norm() < 0.05 * whole.norm()
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, TOKENS + 3)


def test_models_that_attend_otherwise_are_left_as_they_are():
    model = BertModel(BertConfig(vocab_size=50, attn_implementation="eager", **BERT))
    assert not use_bfloat16_attention(model)
    assert model.config._attn_implementation == "eager"
    assert not use_bfloat16_attention(nn.Linear(2, 2))


def test_a_deployment_says_so_and_what_is_saved_does_not_depend_on_it(tmp_path):
    deployment = Deployment("cpu", {}, attention="bfloat16")
    assert read(Deployment, plain(deployment)) == deployment
    assert read(Deployment, {"target": "cpu", "rows": {}}).attention == "float32"
    model = encoder()
    apply(model, deployment)
    assert model.config._attn_implementation == BFLOAT16_ATTENTION
    model.save_pretrained(tmp_path)
    assert BertModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
