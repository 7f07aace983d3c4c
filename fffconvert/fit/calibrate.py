"""Stream activations: batches of calibration text, and the inputs of one block at a time.

Memory is bounded by one block's activations: `tokens * d_model * 4` bytes for its inputs, and as much again
for each of the few copies that a fit makes. Those of other blocks are never held at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fffconvert.errors import FFFError
from fffconvert.fit.corpus import default_corpus, read_texts, rendered
from fffconvert.fit.held_out import HELD_OUT, split_batches, split_documents
from fffconvert.fit.length import longest
from fffconvert.fit.masking import with_masks
from fffconvert.fit.padding import mask_for, without_padding
from fffconvert.fit.rows import Row, read_row
from fffconvert.forward import evaluation, tensors_in
from fffconvert.location import FFNSite
from fffconvert.location.inputs import keywords

Batch = Mapping[str, Any]
TOKENS_PER_BATCH = 4096
CHARACTERS_PER_TOKEN = 8
"""Generous: enough text for the asked number of tokens in any usual tokenizer's English."""
PART_CHARACTERS = 8000
"""Longest part of a document that is taken as one."""


@dataclass(frozen=True)
class Calibration:
    """What layers are fitted on, and what they are measured on.

    Attributes:
        held_out: Batches that no layer is fitted on, of texts none of which is in `fitted`.
        fitted: The others.
    """

    held_out: tuple[Batch, ...]
    fitted: tuple[Batch, ...]


def calibration_of(
    model: nn.Module,
    given: Iterable[Any] | None,
    tokenizer: Any,
    *,
    tokens: int,
    length: int,
    seed: int,
    columns: Sequence[str] = (),
    lines: bool = False,
) -> Calibration:
    """What to calibrate a model on: batches that are given, or text as `text_batches` makes them.

    Masked language models get text with masks, as they will be used on.

    Args:
        model: The model; its longest sequence bounds `length`.
        given: Texts, rows of data, or files and datasets that hold them; or what forward passes take, each a
            tensor, a tuple or a mapping of tensors; or None for the English text that comes with Python.
        tokenizer: The model's tokenizer; not needed for batches.
        tokens: How many tokens of text to take.
        length: Longest sequence, in tokens.
        seed: Order of the texts and batches, and which are held out.
        columns: Of rows of data, those that hold text; empty to find them by their usual names.
        lines: A text of a .txt file is a line.

    Raises:
        FFFError: An item is neither, or not of the kind of the others; there is text and no tokenizer, or too
            little to hold some out.
    """
    if given is None:
        items: list[Any] = default_corpus(CHARACTERS_PER_TOKEN * tokens)
    else:
        items = read_texts(given, columns, lines)
    kinds = [_kind(item, index) for index, item in enumerate(items)]
    if len(set(kinds)) > 1:
        other = next(index for index, kind in enumerate(kinds) if kind != kinds[0])
        raise FFFError(
            f"calibration item 0 is {kinds[0]}, item {other} {kinds[other]}; expected all of one kind"
        )
    if kinds and kinds[0] == BATCH:
        batches = [keywords(model, item, f"calibration item {i}") for i, item in enumerate(items)]
        held, fitted = split_batches(batches)
        return Calibration(tuple(held), tuple(fitted))
    if tokenizer is None:
        raise FFFError(
            "the model has no tokenizer, so text cannot calibrate it; "
            "convert it from Python with calibration=[{argument: tensor, …}, …]"
        )
    texts = [
        read_row(item, f"calibration item {index}", columns) if isinstance(item, Mapping) else item
        for index, item in enumerate(items)
    ]
    found = text_calibration(
        texts, tokenizer, tokens=tokens, length=longest(model, tokenizer, length, warn=True), seed=seed
    )
    held, fitted = (
        with_decoder_inputs(model, with_masks(model, tokenizer, part, seed + offset))
        for offset, part in enumerate((found.held_out, found.fitted))
    )
    return Calibration(tuple(held), tuple(fitted))


def text_calibration(
    texts: Sequence[str | Row], tokenizer: Any, *, tokens: int, length: int, seed: int
) -> Calibration:
    """Batches of texts, whole documents of which are held out.

    Args:
        texts: Documents or paragraphs, each for itself; of a row of data, all texts are one document.
        tokenizer: A transformers tokenizer.
        tokens: How many tokens to take in all.
        length: Longest sequence, in tokens.
        seed: Of the order, and which are held out.

    Raises:
        FFFError: The texts hold no tokens, or the same ones over and over.
    """
    held, fitted = split_documents([rendered(text, tokenizer) for text in texts], seed)
    options = {"length": length, "seed": seed}
    first = text_batches(held, tokenizer, tokens=max(1, round(HELD_OUT * tokens)), **options)
    left = tokens - sum(batch["input_ids"].numel() for batch in first)
    return Calibration(tuple(first), tuple(text_batches(fitted, tokenizer, tokens=max(1, left), **options)))


TEXT, BATCH = "text", "what a forward pass takes"


def _kind(item: Any, index: int) -> str:
    if isinstance(item, str | Row):
        return TEXT
    if isinstance(item, Mapping) and not any(isinstance(value, Tensor) for value in item.values()):
        if item.get("input_ids") is None:
            return TEXT
        raise FFFError(
            f"calibration item {index} holds input_ids as {type(item['input_ids']).__name__}; expected "
            'tensors, as the tokenizer gives with return_tensors="pt"'
        )
    if isinstance(item, Mapping | Tensor) or (isinstance(item, tuple | list) and tensors_in(item)):
        return BATCH
    raise FFFError(
        f"calibration item {index} is a {type(item).__name__}; expected text, a row with text, or what a "
        "forward pass takes: a tensor, a tuple or a mapping of tensors"
    )


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
        f"block {site.name} was never reached by the calibration inputs; leave it out with `exclude`"
    )


def on_device(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The batch where the model's parameters are."""
    device = next(model.parameters()).device
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()}


class Reached(Exception):
    """Ends a forward pass once a block's input is known."""
