"""Data of the end-to-end figures, and that they are those of `fffconvert.evaluation`."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from fffconvert.fitreport import tasks
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from fffconvert.errors import FFFError


class Letters:
    """A tokenizer: a token a letter."""

    model_max_length = 512

    def __call__(self, text, **_):
        if isinstance(text, str):
            return {"input_ids": [ord(letter) % 50 for letter in text]}
        return {"input_ids": [[ord(letter) % 50 for letter in line] for line in text]}


def test_similarity_is_that_of_each_pair_alone(tmp_path: Path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    pairs = [("abc", "abd"), ("hello there", "x"), ("some words", "other words"), ("q", "quite another")]
    path = tmp_path / "sts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for label, (one, other) in enumerate(pairs):
            file.write(json.dumps({"sentence1": one, "sentence2": other, "label": float(label)}) + "\n")
    cosines = []
    with torch.no_grad():
        for one, other in pairs:
            a, b = (model(torch.tensor(Letters()([text])["input_ids"]))[0].mean(1) for text in (one, other))
            cosines.append(float(torch.cosine_similarity(a, b)))
    ranks = torch.tensor(cosines).argsort().argsort().double()
    expected = 1 - 6 * float((ranks - torch.arange(4)).square().sum()) / (4 * 15)
    assert tasks.sts_spearman(model, Letters(), path) == pytest.approx(expected)


def test_perplexity_is_that_of_windows_that_share_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "LENGTH", 10)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = LlamaForCausalLM(config).eval()
    text = "the quick brown fox jumps over the lazy dog"
    ids = torch.tensor(Letters()(text)["input_ids"])[:25]
    losses = []
    with torch.no_grad():
        for window in (ids[:10], ids[9:19], ids[18:]):
            probabilities = model(input_ids=window[None]).logits[0].log_softmax(-1)
            losses += [-float(probabilities[i, window[i + 1]]) for i in range(len(window) - 1)]
    assert len(losses) == 24
    found = tasks.text_perplexity(model, Letters(), text, tokens=25)
    assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_reactions_are_split_as_the_model_was_trained():
    names = ["[CLS]", "[SEP]", "[UNK]", "[", "]", "O", "-", "Br", "C", ">", ".", "c", "1"]
    vocabulary = {name: index for index, name in enumerate(names)}
    (batch,) = tasks.reaction_batches(["CBr.[O-]>>c1N"], vocabulary, 1000)
    expected = ["[CLS]", "C", "Br", ".", "[", "O", "-", "]", ">", ">", "c", "1", "[UNK]", "[SEP]"]
    assert [names[i] for i in batch["input_ids"][0].tolist()] == expected


def test_a_model_that_knows_the_answer_has_no_loss():
    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask):
            answer = torch.arange(5, 5 + input_ids.shape[1]).expand_as(input_ids)
            return (100 * nn.functional.one_hot(answer, 200).float(),)

    assert tasks.reaction_loss(Oracle(), [list(range(5, 105))] * 8, mask=2, special=[1]) == (0.0, 1.0)


def test_a_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(FFFError, match=r"none\.gz does not exist.*--data"):
        tasks.read_lines(tmp_path / "none.gz")
