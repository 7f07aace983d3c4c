"""Makers of tokens and of what goes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from fffconvert.location.inputs.context import Context, makes, nested_configs
from fffconvert.location.inputs.placeholders import MODALITIES, placeholder_id, placeholder_runs
from fffconvert.location.inputs.vision import patches


@makes("input_ids")
def input_ids(context: Context) -> Tensor:
    """Tokens, with the placeholders of an image, a video or a sound after each of the first: [2, length].

    For multiple choice they are [2, 2, length].
    """
    if context.has_head("MultipleChoice"):
        return random_tokens(context, context.length, 2 * context.batch).reshape(
            context.batch, 2, context.length
        )
    runs = [
        torch.cat([context.constant(token, context.batch, count) for token, count in run], dim=1)
        for run in placeholder_runs(context)
    ]
    if "image_embeds_position_mask" in context.parameters:
        runs.append(random_tokens(context, context.number("latent_query_num", default=1)))
    tokens = random_tokens(context, context.length)
    end = context.setting("eos_token_id")
    if context.setting("is_encoder_decoder") and isinstance(end, int):
        tokens[:, -1] = end  # a classifier reads the state there
    first = [part for index, run in enumerate(runs) for part in (tokens[:, index : index + 1], run)]
    return torch.cat([*first, tokens[:, len(runs) :]], dim=1)


@makes("decoder_input_ids")
def decoder_input_ids(context: Context) -> Tensor | None:
    """Tokens for the decoder: [2, 11], or [2 * codebooks, 11] for audio codes."""
    if context.has_head("SequenceClassification"):
        return None  # it feeds the decoder the same text
    codebooks = getattr(getattr(context.config, "decoder", None), "num_codebooks", 1)
    return random_tokens(context, context.decoder_length, context.batch * codebooks, part="decoder")


def random_tokens(context: Context, length: int, rows: int = 0, part: str = "text") -> Tensor:
    """Tokens that are no special ones, and distinct as far as the vocabulary allows.

    Args:
        context: Of the model.
        length: Of each row.
        rows: Number of rows; by default, of examples.
        part: Word in the name of the nested config that knows the vocabulary.

    Returns:
        [rows, length].
    """
    count = (rows or context.batch) * length
    special = special_ids(context)
    vocabulary = context.number("vocab_size", part=part, default=length)
    allowed = context.numbers([token for token in range(vocabulary) if token not in special] or [0])
    order = context.permutation(len(allowed)).repeat(-(-count // len(allowed)))
    return allowed[order[:count]].reshape(-1, length)


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
    """Nothing is padding: ones of the shape of the tokens, patches or time steps; none for sound."""
    for name, axes in (("input_ids", None), ("flattened_patches", 2), ("states", 2)):
        content = context.get(name)
        if content is not None:
            return context.constant(1, *content.shape[:axes])
    return (
        context.constant(1, context.batch, context.length) if "attention_mask" in context.required else None
    )


@makes("task_inputs", only_required=True)
def task(context: Context) -> Tensor:
    """Tokens that name the task: [2, length]."""
    return random_tokens(context, context.number("task_seq_len", default=context.length))


@makes("qformer_input_ids", only_required=True)
def instruction(context: Context) -> Tensor:
    """Tokens of an instruction beside the text: [2, 13]."""
    return random_tokens(context, context.length)


@makes("qformer_attention_mask")
def instruction_mask(context: Context) -> Tensor:
    """Nothing of the instruction is padding: ones [2, 13]."""
    return context.constant(1, context.batch, context.length)


@makes("image_embeds_position_mask")
def image_positions(context: Context) -> Tensor:
    """Where the text holds an image, right after its first token: [2, length]."""
    mask = torch.zeros_like(context.get("input_ids"))
    mask[:, 1 : 1 + context.number("latent_query_num", default=1)] = 1
    return mask


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
    corners = context.integers(
        0, context.number("max_2d_position_embeddings", default=1000), context.batch, 2, length, 2
    )
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


@makes("inputs_embeds", "hidden_states", only_required=True)
def states(context: Context) -> Tensor:
    """Hidden states: [2, 13, d_model]."""
    if "grid_thw" in context.parameters:
        return patches(context)
    return context.normal(
        context.batch, context.length, context.number("input_dim", "hidden_size", "d_model", "dim", default=1)
    )
