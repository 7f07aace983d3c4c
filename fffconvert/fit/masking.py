"""Masked text for masked language models, whose blocks do other things at a mask than at a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

MASKED = 0.15
"""Share of the tokens that are masked."""


def head(model: nn.Module) -> str:
    """What a model's head predicts: "masked" tokens, the next token ("causal"), or "none"."""
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "none"
    if name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal"
    return "masked" if name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() else "none"


def masked_tokens(
    ids: Tensor, mask: int, special: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask 15 % of the tokens that are not special.

    Args:
        ids: [sequences, tokens]
        mask: Id of the mask.
        special: Ids that are not masked.
        generator: Draws them.

    Returns:
        The ids with the mask, and where it stands, both [sequences, tokens].
    """
    chosen = torch.rand(ids.shape, generator=generator, dtype=torch.float32) < MASKED
    chosen &= ~torch.isin(ids, torch.tensor(special))
    return torch.where(chosen, mask, ids), chosen


def with_masks(
    model: nn.Module, tokenizer: Any, batches: Sequence[Mapping[str, Any]], seed: int
) -> list[Mapping[str, Any]]:
    """Mask tokens of the batches if the model is one that predicts masked tokens; else leave them.

    Args:
        model: Any model.
        tokenizer: Its tokenizer.
        batches: With `input_ids`, [sequences, tokens].
        seed: Of the draw.
    """
    if head(model) != "masked" or tokenizer.mask_token_id is None:
        return list(batches)
    generator = torch.Generator().manual_seed(seed)
    mask, special = tokenizer.mask_token_id, tokenizer.all_special_ids
    return [
        {**batch, "input_ids": masked_tokens(batch["input_ids"], mask, special, generator)[0]}
        for batch in batches
    ]
