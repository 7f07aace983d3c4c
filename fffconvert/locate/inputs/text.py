"""Makers of tokens and of what goes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.locate.inputs.context import BATCH, LENGTH, Context, makes, nested_configs
from fffconvert.locate.inputs.placeholders import MODALITIES, placeholder_id, placeholders
from fffconvert.locate.inputs.vision import patches

DECODER_LENGTH = 11


@makes("input_ids")
def input_ids(context: Context) -> Tensor:
    """Tokens, with a run of placeholders after the first for every image, video or sound: [2, length]."""
    tokens = random_tokens(context, LENGTH)
    runs = [context.constant(token, BATCH, count) for token, count in placeholders(context)]
    return torch.cat([tokens[:, :1], *runs, tokens[:, 1:]], dim=1)


@makes("decoder_input_ids")
def decoder_input_ids(context: Context) -> Tensor:
    """Tokens for the decoder: [2, 11]."""
    return random_tokens(context, DECODER_LENGTH)


def random_tokens(context: Context, length: int) -> Tensor:
    """Tokens that are no special ones, and distinct as far as the vocabulary allows: [2, length]."""
    special = special_ids(context)
    vocabulary = context.number("vocab_size", part="text", default=length)
    allowed = torch.tensor([token for token in range(vocabulary) if token not in special] or [0])
    order = context.permutation(len(allowed)).cpu().repeat(-(-BATCH * length // len(allowed)))
    return allowed[order[: BATCH * length]].reshape(BATCH, length).to(context.device)


def special_ids(context: Context) -> set[int]:
    """The ids that the config gives a meaning: padding, ends, placeholders."""
    ids: set[int] = set()
    for config in nested_configs(context.config):
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")):
                ids.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    return ids


@makes("attention_mask")
def attention_mask(context: Context) -> Tensor | None:
    """Nothing is padding: ones of the shape of the tokens."""
    tokens = context.get("input_ids")
    return None if tokens is None else torch.ones_like(tokens)


@makes("mm_token_type_ids")
def modality_of_tokens(context: Context) -> Tensor:
    """0 for text, 1 for images, 2 for video, 3 for audio: of the shape of the tokens."""
    tokens = context.get("input_ids")
    types = torch.zeros_like(tokens)
    for number, modality in enumerate(MODALITIES, start=1):
        token = placeholder_id(context, modality)
        if token is not None:
            types[tokens == token] = number
    return types


@makes("bbox")
def boxes(context: Context) -> Tensor:
    """Boxes of the tokens on their page, left, top, right, bottom: [2, length, 4]."""
    length = context.get("input_ids").shape[1]
    corners = context.integers(0, context.number("max_2d_position_embeddings", default=1000), BATCH, 2, length, 2)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


@makes("inputs_embeds", "hidden_states", "encoder_hidden_states", "decoder_inputs_embeds", only_required=True)
def states(context: Context) -> Tensor:
    """Hidden states: [2, 13, d_model]."""
    if "grid_thw" in context.parameters:
        return patches(context)
    return context.normal(BATCH, LENGTH, context.number("hidden_size", "d_model", "dim", default=1))
