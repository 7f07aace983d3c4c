"""End-to-end figures: similarity of sentences, masked tokens, perplexity."""

from __future__ import annotations

import gzip
import json
import math
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from fffconvert.errors import FFFError
from fffconvert.fit.calibrate import Batch
from fffconvert.locate.capture import evaluation

PAIRS_PER_BATCH = 64
SEQUENCES_PER_BATCH = 32
MASKED = 0.15
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
    rows = [json.loads(line) for line in read_lines(path)]
    cosines: list[float] = []
    with evaluation(model):
        for start in tqdm(range(0, len(rows), PAIRS_PER_BATCH), desc="STS", leave=False, disable=None):
            part = rows[start : start + PAIRS_PER_BATCH]
            both = [row["sentence1"] for row in part] + [row["sentence2"] for row in part]
            inputs = tokenizer(both, padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden = model(**inputs)[0]
            mask = inputs["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            cosines += torch.cosine_similarity(pooled[: len(part)], pooled[len(part) :]).tolist()
    return float(spearmanr(cosines, [row["label"] for row in rows]).statistic)


def reaction_batches(lines: Sequence[str], vocabulary: dict[str, int], tokens: int) -> list[Batch]:
    """Reactions as the model was trained on: split as SMILES, each piece split again at punctuation.

    Args:
        lines: Reaction SMILES.
        vocabulary: Token to id.
        tokens: Take so many tokens.

    Returns:
        Batches of sequences of one length each, without padding.
    """
    by_length: dict[int, list[list[int]]] = {}
    taken = 0
    for line in lines:
        pieces = [p for token in SMILES.findall(line) for p in _PUNCTUATION.split(token) if p]
        ids = [vocabulary.get(piece, vocabulary["[UNK]"]) for piece in pieces]
        by_length.setdefault(len(ids), []).append([vocabulary["[CLS]"], *ids, vocabulary["[SEP]"]])
        taken += len(ids) + 2
        if taken >= tokens:
            break
    batches: list[Batch] = []
    for sequences in by_length.values():
        for start in range(0, len(sequences), SEQUENCES_PER_BATCH):
            rows = torch.tensor(sequences[start : start + SEQUENCES_PER_BATCH])
            batches.append({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    return [batches[index] for index in order]


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
    chosen = torch.rand(ids.shape, generator=generator) < MASKED
    chosen &= ~torch.isin(ids, torch.tensor(special))
    return torch.where(chosen, mask, ids), chosen


def masked_loss(
    model: nn.Module, batches: Sequence[Batch], mask: int, special: Sequence[int]
) -> tuple[float, float]:
    """Cross-entropy and accuracy on 15 % masked tokens, the same ones for every model.

    Args:
        model: A masked language model.
        batches: Whole sequences.
        mask: Id of the mask.
        special: Ids that are neither masked nor scored.
    """
    generator = torch.Generator().manual_seed(0)
    loss, right, count = 0.0, 0, 0
    with evaluation(model):
        for batch in tqdm(batches, desc="masked tokens", leave=False, disable=None):
            ids = batch["input_ids"]
            masked, chosen = masked_tokens(ids, mask, special, generator)
            logits = model(input_ids=masked, attention_mask=batch["attention_mask"])[0][chosen].double()
            loss += float(nn.functional.cross_entropy(logits, ids[chosen], reduction="sum"))
            right += int((logits.argmax(-1) == ids[chosen]).sum())
            count += int(chosen.sum())
    return loss / max(count, 1), right / max(count, 1)


def perplexity(model: nn.Module, tokenizer: Any, text: str, *, tokens: int, length: int = 512) -> float:
    """Perplexity on windows of a text that do not overlap; a window's first token is not scored."""
    ids = tokenizer(text, verbose=False)["input_ids"][:tokens]
    loss, count = 0.0, 0
    with evaluation(model):
        for window in tqdm(list(_windows(ids, length)), desc="perplexity", leave=False, disable=None):
            logits = model(input_ids=window, use_cache=False).logits[:, :-1].double()
            target = window[:, 1:]
            loss += float(
                nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
            )
            count += target.numel()
    return math.exp(loss / max(count, 1))


def _windows(ids: Sequence[int], length: int) -> Iterator[Tensor]:
    for start in range(0, len(ids), length):
        if len(ids) - start > 1:
            yield torch.tensor([ids[start : start + length]])
