"""Text that nothing is fitted on: whole documents, so that no fitted layer has seen a part of them."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, uint8

from fffconvert.errors import FFFError

HELD_OUT = 0.125
"""Share of the calibration text that no layer is fitted on."""


def split_documents(documents: Sequence[tuple[str, ...]], seed: int) -> tuple[list[str], list[str]]:
    """Part documents into texts to measure on and texts to fit.

    About an eighth of the text is held out, one document at least. No text is on both sides: copies stay
    together. A single document is cut in two.

    Args:
        documents: The texts of each: one, or those of a row, as a pair.
        seed: Of the choice.

    Returns:
        Texts held out, and the others in the order given.

    Raises:
        FFFError: There is no text, or the same one over and over.
    """
    documents = [document for document in documents if any(text.strip() for text in document)]
    if not documents:
        raise FFFError("the calibration text holds no tokens; give a file with text")
    if len(set(documents)) == 1:
        documents = [(text,) for text in _in_two(documents[0])]
    shuffled = list(dict.fromkeys(documents))
    random.Random(seed).shuffle(shuffled)
    room = HELD_OUT * sum(map(_size, shuffled))
    held = []
    for document in shuffled:
        if _size(document) <= room:
            held.append(document)
            room -= _size(document)
    held = held or [min(shuffled, key=_size)]
    texts = list(dict.fromkeys(text for document in held for text in document))
    seen, chosen = set(texts), set(held)
    fitted = [t for document in documents if document not in chosen for t in document if t not in seen]
    if not fitted:
        raise FFFError("the calibration repeats one text; give others, so that some can be held out")
    return texts, fitted


def split_batches(batches: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Part given batches: the first eighth to measure on, the others, without copies of those, to fit.

    Where all are copies of one another they are fitted too, with a warning.

    Raises:
        FFFError: Fewer than two are given.
    """
    if len(batches) < 2:
        raise FFFError("the calibration fills a single batch; give more, so that some can be held out")
    count = max(1, round(HELD_OUT * len(batches)))
    held, seen = list(batches[:count]), {_digest(batch) for batch in batches[:count]}
    fitted = [batch for batch in batches[count:] if _digest(batch) not in seen]
    if not fitted:
        warnings.warn("the calibration repeats one batch, so R² is of what was fitted, too", stacklevel=2)
        fitted = list(batches[count:])
    return held, fitted


def _size(document: tuple[str, ...]) -> int:
    return sum(map(len, document))


def _in_two(document: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of a document, or the only one cut at white space before its last eighth."""
    if len(document) > 1:
        return document
    (text,) = document
    end = round((1 - HELD_OUT) * len(text))
    cut = max(text.rfind(" ", 1, end), text.rfind("\n", 1, end))
    cut = cut if cut > 0 else end
    return text[:cut], text[cut:]


def _digest(batch: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
