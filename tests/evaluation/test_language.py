"""What language models make of text, against one token at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fffconvert.errors import FFFError
from fffconvert.evaluation import agreement, language
from fffconvert.evaluation.metrics import perplexity
from fffconvert.fit import masking

SPECIAL = [0, 1, 2, 3, 4]
MASK = 4


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


def test_strided_perplexity_is_that_of_a_direct_loop(build: Any):
    model = build("causal")
    ids = torch.randint(5, 35, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    units, end = language.causal_loss(model, ids, length=16, stride=8, limit=None)
    losses = []
    with torch.no_grad():
        for place in range(1, 100):
            # The window that scores this token: the first whose end is behind it.
            start = max(0, 8 * math.ceil((place + 1 - 16) / 8))
            logits = model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1].double()
            losses.append(-float(logits.log_softmax(-1)[ids[place]]))
    assert end == 100
    assert units[:, 1].sum() == 99
    assert perplexity(0, 1)(units) == pytest.approx(math.exp(sum(losses) / 99), rel=1e-5)


def test_every_window_begins_with_what_the_tokenizer_puts_there(build: Any):
    model = build("causal")
    ids = torch.randint(5, 35, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    seen: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    units, end = language.causal_loss(model, ids, prefix=[2], length=16, stride=8, limit=None)
    handle.remove()
    assert end == 40
    assert units[:, 1].tolist() == [15, 8, 8, 8, 1]  # all tokens, the first one too
    assert all(window[0] == 2 and len(window) <= 16 for window in seen)
    assert [window[1:] for window in seen] == [ids[start : start + 15] for start in range(0, 40, 8)]
    losses = []
    with torch.no_grad():
        for place in range(40):
            start = max(0, 8 * math.ceil((place + 1 - 15) / 8))
            logits = model(input_ids=torch.tensor([[2, *ids[start:place]]])).logits[0, -1].double()
            losses.append(-float(logits.log_softmax(-1)[ids[place]]))
    assert perplexity(0, 1)(units) == pytest.approx(math.exp(sum(losses) / 40), rel=1e-5)


def test_the_prefix_is_what_the_tokenizer_adds(tokenizer: Any):
    text = "the text"
    whole = tokenizer(text)["input_ids"]
    prefix, ids, offsets = language.begun(tokenizer, text)
    assert [*prefix, *ids] == whole
    assert prefix == [token for token in whole[:1] if token in tokenizer.all_special_ids]
    assert offsets is not None
    assert len(offsets) == len(ids)


@pytest.mark.parametrize(
    ("tokens", "length", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 7), (50, 8, 3), (51, 8, 7)]
)
def test_windows_score_every_token_but_the_first_once(tokens: int, length: int, stride: int):
    scored: list[int] = []
    for start, end, count in language.windows(tokens, length, stride):
        assert end - start <= length
        assert end - count > start or start == 0
        scored += range(end - count, end)
    assert scored == list(range(1, tokens))


def test_a_limit_takes_the_first_windows(build: Any):
    model, ids = build("causal"), list(range(5, 35)) * 3
    whole, _ = language.causal_loss(model, ids, length=16, stride=8, limit=None)
    first, end = language.causal_loss(model, ids, length=16, stride=8, limit=3)
    assert first.tolist() == whole[:3].tolist()
    assert end == 32


def test_masked_loss_is_that_of_each_sequence_alone(build: Any, tokenizer: Any, sentences: Any):
    model, sequences = build("masked"), ids_of(tokenizer, sentences(30))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    masked = language.masked_tokens

    def spy(ids: torch.Tensor, *arguments: Any) -> Any:
        found = masked(ids, *arguments)
        seen.append((ids, *found))
        return found

    language.masked_tokens = spy
    try:
        units = language.masked_loss(model, sequences, MASK, SPECIAL)
    finally:
        language.masked_tokens = masked
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for ids, hidden, chosen in seen:
            for row in range(len(ids)):
                logits = model(input_ids=hidden[row : row + 1]).logits[0].log_softmax(-1)
                for place in chosen[row].nonzero()[:, 0].tolist():
                    loss -= float(logits[place, ids[row, place]])
                    right += int(logits[place].argmax()) == int(ids[row, place])
                    count += 1
    assert units.sum(0) == pytest.approx([loss, right, count], rel=1e-4)
    assert count > 10


def test_pseudo_perplexity_masks_each_token_alone(build: Any, tokenizer: Any, sentences: Any):
    model, sequences = build("masked"), ids_of(tokenizer, sentences(4))
    units = language.pseudo_perplexity(model, sequences, MASK, SPECIAL)
    for sequence, (loss, count) in zip(sequences, units, strict=True):
        expected = 0.0
        with torch.no_grad():
            for place in range(1, len(sequence) - 1):
                ids = torch.tensor([sequence])
                ids[0, place] = MASK
                expected -= float(model(input_ids=ids).logits[0, place].log_softmax(-1)[sequence[place]])
        assert count == len(sequence) - 2
        assert loss == pytest.approx(expected, rel=1e-4)


def test_lines_are_cut_and_empty_ones_left_out(tokenizer: Any):
    found = language.lines(["ba be\n\n  \nbi " + "bo " * 30, "bu"], tokenizer, 12, None)
    assert [len(ids) for ids in found] == [4, 12, 12, 12, 3]
    assert all(ids[0] == 2 and ids[-1] == 3 for ids in found)
    assert language.lines(["ba\nbe\nbi"], tokenizer, 12, 2) == [[2, 5, 3], [2, 6, 3]]
    with pytest.raises(FFFError, match="holds no tokens"):
        language.lines([" "], tokenizer, 12, None)


def test_heads_are_told_apart(build: Any):
    assert [masking.head(build(kind)) for kind in ("encoder", "masked", "causal")] == [
        "none",
        "masked",
        "causal",
    ]
    with pytest.raises(FFFError, match="got a BertModel; expected a masked language model"):
        language.require_head(build("encoder"), "masked", "mlm")


def test_a_model_agrees_with_itself_and_not_with_another(build: Any, tokenizer: Any, sentences: Any):
    sequences = ids_of(tokenizer, sentences(20))
    for kind, masked in (("masked", (MASK, SPECIAL)), ("causal", None)):
        model, other = build(kind), build(kind, 1)
        same = agreement.predictions(model, model, sequences, masked)
        assert same[:, 0] == pytest.approx(0, abs=1e-5)
        assert (same[:, 1] == same[:, 2]).all()
        units = agreement.predictions(other, model, sequences, masked)
        assert units[:, 0].sum() > 0.001
        assert units[:, 1].sum() < units[:, 2].sum()
    embedded = agreement.embeddings(build("masked"), build("masked"), sequences)
    assert embedded[:, 0] == pytest.approx(1, abs=1e-5)
    assert embedded[:, 1] == pytest.approx(embedded[:, 2], abs=1e-6)


def test_divergence_is_torchs(build: Any):
    model, other, ids = build("causal", 1), build("causal"), list(range(5, 25))
    (units,) = agreement.predictions(model, other, [ids], None)
    with torch.no_grad():
        own, teacher = (m(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1) for m in (model, other))
    expected = nn.functional.kl_div(own, teacher, log_target=True, reduction="sum")
    assert units[0] == pytest.approx(float(expected), rel=1e-4)
