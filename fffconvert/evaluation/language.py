"""What a language model makes of text: masked tokens, pseudo-perplexity, strided perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.errors import FFFError
from fffconvert.evaluation.batches import equal_lengths
from fffconvert.evaluation.metrics import Units
from fffconvert.fit.calibrate import Batch, sequences_of
from fffconvert.fit.masking import head, masked_tokens
from fffconvert.forward import evaluation

LENGTH = 512
"""Tokens of a window of perplexity, and of the longest sequence with masked tokens."""


def require_head(model: nn.Module, wanted: str, task: str) -> None:
    """Refuse a model without the head that a task needs.

    Raises:
        FFFError: It has another.
    """
    if head(model) != wanted:
        kind = {"masked": "a masked language model (…ForMaskedLM)", "causal": "a causal one (…ForCausalLM)"}
        raise FFFError(f"task {task} got a {type(model).__name__}; expected {kind[wanted]}: leave it out")


def lines(documents: Sequence[str], tokenizer: Any, length: int, limit: int | None) -> list[list[int]]:
    """Token ids of each line of text, with special tokens; long lines are cut, empty ones left out.

    Raises:
        FFFError: There are none.
    """
    found: list[list[int]] = []
    for document in documents:
        for line in document.splitlines():
            if line.strip():
                found += sequences_of(line.strip(), tokenizer, length)
            if limit is not None and len(found) >= limit:
                return found[:limit]
    if not found:
        raise FFFError("the text holds no tokens; give a file with text")
    return found


def masked_loss(
    model: nn.Module, sequences: Sequence[Sequence[int]], mask: int, special: Sequence[int]
) -> Units:
    """What a model makes of 15 % masked tokens, the same ones for every model.

    Args:
        model: A masked language model.
        sequences: Token ids.
        mask: Id of the mask.
        special: Ids that are neither masked nor scored.

    Returns:
        Of each sequence the sum of negative log-likelihoods (nats), how many are right, and how many are
        masked: [sequences, 3].
    """
    generator = torch.Generator().manual_seed(0)
    units = np.zeros((len(sequences), 3))
    with evaluation(model):
        for part, ids in equal_lengths(sequences, "masked tokens"):
            masked, chosen = masked_tokens(ids, mask, special, generator)
            row = chosen.nonzero()[:, 0]
            logits, target = logits_of(model, masked)[chosen], ids[chosen]
            loss = nn.functional.cross_entropy(logits, target, reduction="none").double()
            for column, value in enumerate((loss, logits.argmax(-1) == target, torch.ones_like(loss))):
                units[part, column] = torch.zeros(len(part)).double().index_add_(0, row, value.double())
    return units


def pseudo_perplexity(
    model: nn.Module, sequences: Sequence[Sequence[int]], mask: int, special: Sequence[int]
) -> Units:
    """Mask every token that is not special once, each alone.

    Returns:
        Of each sequence the sum of negative log-likelihoods (nats), and the number of tokens:
        [sequences, 2].

    Reference: arXiv 1910.14659, section 2.
    """
    units = np.zeros((len(sequences), 2))
    with evaluation(model):
        for index, sequence in enumerate(
            tqdm(sequences, desc="pseudo-perplexity", leave=False, disable=None)
        ):
            ids = torch.tensor(list(sequence))
            places = (~torch.isin(ids, torch.tensor(special))).nonzero()[:, 0]
            for part in torch.split(places, max(1, 4096 // len(ids))):
                masked = ids.repeat(len(part), 1)
                masked[torch.arange(len(part)), part] = mask
                logits = logits_of(model, masked)[torch.arange(len(part)), part]
                loss = nn.functional.cross_entropy(logits, ids[part], reduction="none")
                units[index] += float(loss.double().sum()), len(part)
    return units


def windows(tokens: int, length: int, stride: int, first: int = 1) -> Iterator[tuple[int, int, int]]:
    """Windows over a text of which each scores the tokens that none before it did.

    Args:
        tokens: Of the text.
        length: Of a window, in tokens.
        stride: From one window's first token to the next one's.
        first: The first token that is scored: 0 where something stands before the text.

    Yields:
        First token, end, and how many tokens at the end are scored.
    """
    done = first
    for start in range(0, tokens, stride):
        end = min(start + length, tokens)
        if end > done:
            yield start, end, end - done
        done = end
        if end == tokens:
            return


def causal_loss(
    model: nn.Module,
    ids: Sequence[int],
    *,
    prefix: Sequence[int] = (),
    length: int = LENGTH,
    stride: int = LENGTH // 2,
    limit: int | None,
) -> tuple[Units, int]:
    """What a model makes of the next tokens of a text, with at least `length - stride` tokens of context.

    Models are trained on sequences that begin with what their tokenizer puts there, and lose much where it
    is missing; so every window begins with it, not the first one alone.

    Args:
        model: A causal language model.
        ids: Token ids of the whole text, without the prefix.
        prefix: What every window begins with, as `begun` finds it. Without one the text's first token is not
            scored.
        length: Tokens of a window, prefix included.
        stride: From one window's first token to the next one's.
        limit: Take so many windows.

    Returns:
        Of each window the sum of negative log-likelihoods (nats) and the number of scored tokens
        [windows, 2], and how many tokens were read.
    """
    found, end = [], 0
    room = length - len(prefix)
    places = list(windows(len(ids), room, min(stride, room), 0 if prefix else 1))[:limit]
    with evaluation(model):
        for start, end, scored in tqdm(places, desc="perplexity", leave=False, disable=None):
            window = torch.tensor([[*prefix, *ids[start:end]]])
            logits = logits_of(model, window, use_cache=False)[0, -scored - 1 : -1]
            loss = nn.functional.cross_entropy(logits, window[0, -scored:], reduction="none")
            found.append((float(loss.double().sum()), float(scored)))
    return np.array(found), end


def begun(tokenizer: Any, text: str) -> tuple[list[int], list[int], list[tuple[int, int]] | None]:
    """A text's tokens, apart from those that the tokenizer puts before every text (BOS, with most).

    Returns:
        The prefix, the tokens, and where each token stands in the text (None from slow tokenizers).
    """
    fast = bool(getattr(tokenizer, "is_fast", False))
    options = {"return_special_tokens_mask": True, "return_offsets_mapping": fast, "verbose": False}
    encoded = tokenizer(text, **options)
    ids = list(encoded["input_ids"])
    added = list(encoded.get("special_tokens_mask") or [0] * len(ids))
    first = added.index(0) if 0 in added else len(added)
    return ids[:first], ids[first:], list(encoded["offset_mapping"])[first:] if fast else None


def logits_of(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    """Logits in float32 on the CPU: [sequences, tokens, vocabulary]."""
    ids = ids.to(next(model.parameters()).device)
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **options}
    logits: Tensor = model(**batch)[0]
    return logits.float().cpu()
