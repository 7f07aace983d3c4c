"""Token sequences in batches of one length each: no padding, which would meet the trees as tokens do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.fit.length import longest
from fffconvert.forward import evaluation

TOKENS_PER_BATCH = 4096


def equal_lengths(
    sequences: Sequence[Sequence[int]], name: str, tokens: int = TOKENS_PER_BATCH
) -> Iterator[tuple[list[int], Tensor]]:
    """Sequences of one length at a time, the longest first, with a progress bar.

    Args:
        sequences: Token ids; none empty.
        name: Of the bar.
        tokens: Of a batch at most, but one sequence always goes.

    Yields:
        Which sequences they are, and their ids [sequences, length].
    """
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(sequences):
        by_length.setdefault(len(ids), []).append(index)
    with tqdm(total=len(sequences), desc=name, leave=False, disable=None) as bar:
        for length in sorted(by_length, reverse=True):
            indices, step = by_length[length], max(1, tokens // length)
            for start in range(0, len(indices), step):
                part = indices[start : start + step]
                yield part, torch.tensor([list(sequences[index]) for index in part])
                bar.update(len(part))


def encoder(model: nn.Module) -> nn.Module:
    """The part of a model that makes hidden states: without its head, and without its decoder."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        found: nn.Module = model.get_encoder()  # type: ignore[operator]
        return found
    body = getattr(model, "base_model", None)
    return body if isinstance(body, nn.Module) else model


def embed(model: nn.Module, tokenizer: Any, texts: Sequence[str], *, length: int = 256) -> Tensor:
    """Mean of the last hidden states of each text, special tokens included.

    Args:
        model: Any text model of transformers.
        tokenizer: Its tokenizer.
        texts: What to embed.
        length: Tokens after which a text is cut off.

    Returns:
        [texts, d_model] in float32 on the CPU.
    """
    length = longest(model, tokenizer, length)
    sequences = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    return embed_tokens(model, sequences)


def embed_tokens(model: nn.Module, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The same of token ids; a sequence without tokens gets zeros."""
    body, device = encoder(model), next(model.parameters()).device
    present = [index for index, ids in enumerate(sequences) if len(ids)]
    rows: dict[int, Tensor] = {}
    with evaluation(model):
        for part, ids in equal_lengths([sequences[index] for index in present], "embed"):
            ids = ids.to(device)
            hidden = body(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
            means = hidden.float().mean(1).cpu()
            rows |= {present[index]: mean for index, mean in zip(part, means, strict=True)}
    width = next(iter(rows.values())).shape if rows else (1,)
    return torch.stack(
        [rows.get(index, torch.zeros(width, dtype=torch.float32)) for index in range(len(sequences))]
    )
