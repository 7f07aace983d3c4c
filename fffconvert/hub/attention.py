"""Attention products in bfloat16, where the processor has units for them: part of an int8 rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fffconvert.hub.hooks import BFLOAT16_ATTENTION
from fffconvert.private_names import attention_of, can_set_attention

PLAIN = "sdpa"
SHORT = 64
"""Tokens below which turning the inputs into bfloat16 costs more than it saves."""


def bfloat16_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot products as transformers' `sdpa`, computed in bfloat16 where there are enough of them.

    Args:
        module: The attention that asks.
        query: [batch, heads, tokens, width], float32; other types are left to `sdpa`.
        key: [batch, heads of keys, keys, width]
        value: As `key`.
        attention_mask: [batch, 1 or heads, tokens, keys], boolean or to be added; or None.
        **options: As of `sdpa`.

    Returns:
        [batch, tokens, heads, width] in the type of `query`; and None, as `sdpa`.
    """
    dtype = query.dtype
    if dtype == torch.float32 and query.shape[2] * key.shape[2] >= SHORT**2:
        query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
        attention_mask = _half(attention_mask)
        options["position_bias"] = _half(options.get("position_bias"))
    y, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return y.to(dtype), weights


def _half(mask: Tensor | None) -> Tensor | None:
    """What is added to scores, in their type; boolean masks stay."""
    return mask.bfloat16() if mask is not None and mask.is_floating_point() else mask


def use_bfloat16_attention(model: nn.Module) -> bool:
    """Have a model of transformers attend in bfloat16; tells whether it can. Others are left as they are."""
    if not isinstance(model, PreTrainedModel) or attention_of(model.config) != PLAIN:
        return False
    if not can_set_attention(model):
        return False
    model.set_attn_implementation(BFLOAT16_ATTENTION)
    return bool(attention_of(model.config) == BFLOAT16_ATTENTION)
