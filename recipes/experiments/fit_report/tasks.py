"""Data of the report's end-to-end figures; the figures themselves are those of `fffconvert.evaluation`."""

from __future__ import annotations

import gzip
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fffconvert.errors import FFFError
from fffconvert.evaluation.data import parse_lines
from fffconvert.evaluation.language import LENGTH, begun, causal_loss, masked_loss
from fffconvert.evaluation.metrics import SPEARMAN, perplexity, ratio
from fffconvert.evaluation.sentence import similarity
from fffconvert.fit.calibrate import Batch, Calibration
from fffconvert.fit.held_out import HELD_OUT, split_documents

SEQUENCES_PER_BATCH = 32
SMILES = re.compile(
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9])"
)
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


def read_lines(path: Path) -> list[str]:
    """The lines of a gzipped text file that hold anything.

    Raises:
        FFFError: There is no such file.
    """
    if not path.is_file():
        raise FFFError(f"evaluation file {path} does not exist; give its folder with --data")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def sts_spearman(model: nn.Module, tokenizer: Any, path: Path) -> float:
    """Spearman correlation of cosines of mean-pooled embeddings with the grades of sentence pairs."""
    rows = parse_lines("\n".join(read_lines(path)), path)
    return SPEARMAN.compute(similarity(model, tokenizer, rows))


def reactions(lines: Sequence[str], vocabulary: dict[str, int], tokens: int) -> list[list[int]]:
    """Reactions as the model was trained on: split as SMILES, each piece split again at punctuation.

    Args:
        lines: Reaction SMILES.
        vocabulary: Token to id.
        tokens: Take so many tokens.

    Returns:
        Token ids of each reaction.
    """
    sequences: list[list[int]] = []
    taken = 0
    for line in lines:
        pieces = [p for token in SMILES.findall(line) for p in _PUNCTUATION.split(token) if p]
        ids = [vocabulary.get(piece, vocabulary["[UNK]"]) for piece in pieces]
        sequences.append([vocabulary["[CLS]"], *ids, vocabulary["[SEP]"]])
        taken += len(ids) + 2
        if taken >= tokens:
            break
    return sequences


def reaction_calibration(lines: Sequence[str], vocabulary: dict[str, int], tokens: int) -> Calibration:
    """Batches of reactions, some of which are held out; none is on both sides."""
    held, fitted = split_documents([(line,) for line in lines], seed=0)
    first = reaction_batches(held, vocabulary, round(HELD_OUT * tokens))
    left = tokens - sum(batch["input_ids"].numel() for batch in first)
    return Calibration(tuple(first), tuple(reaction_batches(fitted, vocabulary, left)))


def reaction_batches(lines: Sequence[str], vocabulary: dict[str, int], tokens: int) -> list[Batch]:
    """The same in batches of sequences of one length each, without padding, in random order."""
    by_length: dict[int, list[list[int]]] = {}
    for ids in reactions(lines, vocabulary, tokens):
        by_length.setdefault(len(ids), []).append(ids)
    batches: list[Batch] = []
    for sequences in by_length.values():
        for start in range(0, len(sequences), SEQUENCES_PER_BATCH):
            rows = torch.tensor(sequences[start : start + SEQUENCES_PER_BATCH])
            batches.append({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    return [batches[index] for index in order]


def reaction_loss(
    model: nn.Module, sequences: Sequence[Sequence[int]], mask: int, special: Sequence[int]
) -> tuple[float, float]:
    """Cross-entropy and accuracy on 15 % masked tokens, the same ones for every model."""
    units = masked_loss(model, sequences, mask, special)
    return ratio(0, 2)(units), ratio(1, 2)(units)


def text_perplexity(model: nn.Module, tokenizer: Any, text: str, *, tokens: int) -> float:
    """Perplexity on windows of a text, each behind what the tokenizer puts before a text, or one token."""
    prefix, ids, _ = begun(tokenizer, text)
    units, _ = causal_loss(model, ids[:tokens], prefix=prefix, length=LENGTH, stride=LENGTH - 1, limit=None)
    return perplexity(0, 1)(units)
