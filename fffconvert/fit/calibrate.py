"""Stream activations: batches of calibration text, and the inputs of one block at a time.

Memory is bounded by one block's activations: `tokens * d_model * 4` bytes for its inputs, and as much again
for each of the few copies that a fit makes. Those of other blocks are never held at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.fit.corpus import default_corpus
from fffconvert.fit.masking import with_masks
from fffconvert.fit.padding import mask_for, without_padding
from fffconvert.locate import FFNSite
from fffconvert.locate.capture import evaluation

Batch = Mapping[str, Any]
TOKENS_PER_BATCH = 4096
CHARACTERS_PER_TOKEN = 8
"""Generous: enough text for the asked number of tokens in any usual tokenizer's English."""
PART_CHARACTERS = 8000
"""Longest part of a document that is taken as one."""


def calibration_batches(
    model: nn.Module,
    calibration: Iterable[str] | Iterable[Batch] | None,
    tokenizer: Any,
    *,
    tokens: int,
    length: int,
    seed: int,
) -> list[Batch]:
    """Batches to calibrate a model on: those given, or text as `text_batches` makes them.

    Masked language models get text with masks, as they will be used on.

    Args:
        model: The model; its longest sequence bounds `length`.
        calibration: Texts, batches, or None for the English text that comes with Python.
        tokenizer: The model's tokenizer; not needed for batches.
        tokens: How many tokens of text to take.
        length: Longest sequence, in tokens.
        seed: Order of the texts and batches.

    Raises:
        FFFError: There is text and no tokenizer, or no token in it.
    """
    items = None if calibration is None else list(calibration)
    if items and not isinstance(items[0], str):
        return [item for item in items if isinstance(item, Mapping)]
    if tokenizer is None:
        raise FFFError(
            "the model has no tokenizer, so text cannot calibrate it; "
            "convert it from Python with calibration=[{argument: tensor, …}, …]"
        )
    texts = default_corpus(CHARACTERS_PER_TOKEN * tokens) if items is None else [str(item) for item in items]
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1 << 30
    length = min(length, tokenizer.model_max_length, int(positions))
    batches = text_batches(texts, tokenizer, tokens=tokens, length=length, seed=seed)
    return with_decoder_inputs(model, with_masks(model, tokenizer, batches, seed))


def text_batches(texts: Iterable[str], tokenizer: Any, *, tokens: int, length: int, seed: int) -> list[Batch]:
    """Tokenise texts into batches without padding: sequences of one length each, in random order.

    Args:
        texts: Documents or paragraphs. Long ones are cut into parts, of which each is taken for itself, so
            that a few books do not fill the whole calibration.
        tokenizer: A transformers tokenizer.
        tokens: How many tokens to take; fewer if the texts end.
        length: Longest sequence, in tokens.
        seed: Order of the texts and batches.

    Returns:
        Batches with `input_ids` and `attention_mask`, [sequences, tokens] each.

    Raises:
        FFFError: The texts hold no tokens.
    """
    order = random.Random(seed)
    documents = [part for text in texts for part in _parts(text)]
    order.shuffle(documents)
    by_length: dict[int, list[list[int]]] = {}
    taken = 0
    for document in documents:
        if taken >= tokens:
            break
        for ids in sequences_of(document, tokenizer, length):
            by_length.setdefault(len(ids), []).append(ids)
            taken += len(ids)
            if taken >= tokens:
                break
    batches: list[Batch] = []
    for size, sequences in by_length.items():
        per_batch = max(1, TOKENS_PER_BATCH // size)
        for start in range(0, len(sequences), per_batch):
            rows = torch.tensor(sequences[start : start + per_batch])
            batches.append({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    if not batches:
        raise FFFError("the calibration text holds no tokens; give a file with text")
    order.shuffle(batches)
    return batches


def _parts(text: str) -> list[str]:
    """A text cut at white space into parts of bounded length."""
    parts = []
    while len(text) > PART_CHARACTERS:
        end = max(text.rfind(" ", 1, PART_CHARACTERS), text.rfind("\n", 1, PART_CHARACTERS))
        end = end if end > 0 else PART_CHARACTERS
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text]


def sequences_of(document: str, tokenizer: Any, length: int) -> list[list[int]]:
    """A text's tokens in pieces of at most `length`, each between the tokenizer's special tokens."""
    encoded = tokenizer(document, return_special_tokens_mask=True, verbose=False)
    ids, added = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(added):
        return []
    first, end = added.index(0), len(added) - added[::-1].index(0)
    prefix, plain, suffix = ids[:first], ids[first:end], ids[end:]
    room = length - len(prefix) - len(suffix)
    pieces = [plain[start : start + room] for start in range(0, len(plain), room)]
    if len(pieces) > 1 and len(pieces[-1]) < 8:
        pieces.pop()  # a few left-over words are no sequence that the model was made for
    return [[*prefix, *piece, *suffix] for piece in pieces]


def with_decoder_inputs(model: nn.Module, batches: Sequence[Batch]) -> list[Batch]:
    """Add the same text as the decoder's input, shifted by one, for encoder-decoder models."""
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return list(batches)
    start = getattr(config, "decoder_start_token_id", None)
    completed: list[Batch] = []
    for batch in batches:
        ids = batch["input_ids"]
        first = torch.full_like(ids[:, :1], ids[0, 0].item() if start is None else start)
        completed.append({**batch, "decoder_input_ids": torch.cat([first, ids[:, :-1]], 1)})
    return completed


def block_inputs(model: nn.Module, site: FFNSite, batches: Sequence[Batch]) -> Tensor:
    """What a block is given when the model runs over the batches, whatever stands in its place.

    Args:
        model: The model; runs until the block has been reached.
        site: The block.
        batches: Keyword arguments of forward passes.

    Returns:
        [tokens, d_model] in float32 on the CPU.

    Raises:
        FFFError: The block was not reached, or was given values that are not finite.
    """
    taken: list[Tensor] = []
    with evaluation(model):
        for batch in batches:
            with captured_inputs(model, site, batch) as own, suppress(Reached):
                model(**on_device(model, batch))
            taken += own
    if not taken:
        raise _unreached(site)
    return torch.cat(taken)


@contextmanager
def captured_inputs(model: nn.Module, site: FFNSite, batch: Batch) -> Iterator[list[Tensor]]:
    """Take what a block is given in the body: [tokens, d_model] for each call, in float32 on the CPU.

    Tokens that the batch's mask says are padding are left out. A run ends with `Reached` at the block, unless
    the block is called more than once in it.

    Raises:
        FFFError: The block was not reached, or was given values that are not finite.
    """
    taken: list[Tensor] = []
    mask = mask_for(model, site.placement.entry[0], batch)

    def take(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().movedim(site.placement.feature_axis, -1)
        x = without_padding(x, mask, f"block {site.name}")
        taken.append(x.to("cpu", torch.float32, copy=True))
        if site.shared_calls == 1:
            raise Reached

    handle = model.get_submodule(site.placement.entry[0]).register_forward_pre_hook(take)
    try:
        yield taken
    finally:
        handle.remove()
    if not taken:
        raise _unreached(site)
    if not all(bool(x.isfinite().all()) for x in taken):
        raise FFFError(f"block {site.name} is given values that are not finite; check the model's weights")


def _unreached(site: FFNSite) -> FFFError:
    return FFFError(
        f"block {site.name} was never reached by the calibration inputs; leave it out with --exclude"
    )


def on_device(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The batch where the model's parameters are."""
    device = next(model.parameters()).device
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()}


class Reached(Exception):
    """Ends a forward pass once a block's input is known."""
