"""What sentence embeddings are good for without training: similarity, retrieval, a linear probe."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fffconvert.errors import FFFError
from fffconvert.evaluation.batches import embed
from fffconvert.evaluation.data import Row
from fffconvert.evaluation.metrics import Units

GRADES = {1: 4, 2: 3, 3: 2, 4: 1}
"""Gain of a document by Cranfield's grade, of which 1 is the best; others are not relevant."""
PROBE_TEST = 0.2
"""Share of a classification set without a split of its own on which the probe is tested."""


def similarity(model: nn.Module, tokenizer: Any, rows: Sequence[Row]) -> Units:
    """Grades and cosines of the embeddings of sentence pairs: [pairs, 2]."""
    both = [row["sentence1"] for row in rows] + [row["sentence2"] for row in rows]
    vectors = embed(model, tokenizer, both)
    cosines = torch.cosine_similarity(vectors[: len(rows)], vectors[len(rows) :])
    return np.column_stack([[row["label"] for row in rows], cosines.numpy()]).astype(np.float64)


def retrieval(
    model: nn.Module, tokenizer: Any, queries: Mapping[int, str], documents: Mapping[int, str], judged: Any
) -> Units:
    """The nDCG@10 of each query, ranking all documents by cosine.

    Args:
        model: A sentence encoder.
        tokenizer: Its tokenizer.
        queries: By key; each has a relevant document.
        documents: By key.
        judged: For each query the gains of relevant documents.

    Returns:
        [queries, 1]
    """
    from sklearn.metrics import ndcg_score

    found = nn.functional.normalize(embed(model, tokenizer, list(documents.values())), dim=1)
    asked = nn.functional.normalize(embed(model, tokenizer, list(queries.values())), dim=1)
    gains = np.array([[judged[query].get(document, 0) for document in documents] for query in queries])
    scores = (asked @ found.T).double().numpy()
    return np.array(
        [[ndcg_score(gain[None], score[None], k=10)] for gain, score in zip(gains, scores, strict=True)]
    )


def relevance(rows: Sequence[Row]) -> dict[int, dict[int, int]]:
    """Gains of the relevant documents of each query, from the rows of judgements.

    Raises:
        FFFError: A grade is no number.
    """
    gains: dict[int, dict[int, int]] = {}
    for row in rows:
        if not isinstance(row["rel"], int):
            raise FFFError(f"relevance of document {row['doc']} is {row['rel']!r}; expected 1 to 4, or -1")
        if row["rel"] in GRADES:
            gains.setdefault(row["query"], {})[row["doc"]] = GRADES[row["rel"]]
    return gains


def probe(model: nn.Module, tokenizer: Any, train: Sequence[Row], test: Sequence[Row]) -> Units:
    """Labels and predictions of logistic regression on standardised embeddings: [test rows, 2]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = embed(model, tokenizer, [row["text"] for row in (*train, *test)]).double().numpy()
    labels = np.array([row["label"] for row in train])
    if len(set(labels.tolist())) < 2:
        raise FFFError(f"all {len(train)} training rows have one label; expected at least two: raise `limit`")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(vectors[: len(train)], labels)
    found = classifier.predict(vectors[len(train) :])
    return np.column_stack([[row["label"] for row in test], found]).astype(np.float64)


def some(rows: Sequence[Row], limit: int | None) -> Sequence[Row]:
    """Rows drawn at random, the same ones every time: files may be sorted by label. None for all of them."""
    return rows if limit is None or limit >= len(rows) else random.Random(0).sample(list(rows), limit)


def split(rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    """Train and test rows of a set without a split of its own: the same ones every time."""
    order = random.Random(0).sample(list(rows), len(rows))
    border = len(order) - max(1, round(PROBE_TEST * len(order)))
    return order[:border], order[border:]
