"""Batches of calibration text, and the inputs of one block at a time."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BatchEncoding, PreTrainedTokenizerFast
from zoo import ARCHITECTURES, HANDWRITTEN

from fffconvert import surgery
from fffconvert.errors import FFFError
from fffconvert.fit.calibrate import (
    block_inputs,
    calibration_of,
    sequences_of,
    text_batches,
    with_decoder_inputs,
)
from fffconvert.location import locate

BY_NAME = {case.name: case for case in [*ARCHITECTURES, *HANDWRITTEN]}


class Letters:
    """A tokenizer: one token a letter, 1 before and 2 after every text."""

    model_max_length = 512
    mask_token_id = None

    def __call__(self, text: str, **_):
        ids = [3 + ord(letter) % 50 for letter in text]
        return {"input_ids": [1, *ids, 2], "special_tokens_mask": [1, *[0] * len(ids), 1]}


TEXTS = ["abc" * 20, "hello", "", "x" * 100, "a longer text than the others"] * 20


def batches(**options):
    defaults = {"tokens": 10_000, "length": 16, "seed": 0}
    return text_batches(TEXTS, Letters(), **(defaults | options))


def test_sequences_have_their_special_tokens_and_no_padding():
    for batch in batches():
        assert batch["attention_mask"].all()
        assert (batch["input_ids"][:, 0] == 1).all()
        assert (batch["input_ids"][:, -1] == 2).all()
        assert batch["input_ids"].shape[1] <= 16


def test_long_texts_are_cut_and_no_token_is_lost_but_short_remainders():
    found = text_batches(["abcdefghij" * 3], Letters(), tokens=100, length=12, seed=0)
    assert sorted(tuple(b["input_ids"].shape) for b in found) == [(3, 12)]
    found = text_batches(["abcdefghij" * 3 + "klm"], Letters(), tokens=100, length=12, seed=0)
    assert sum(b["input_ids"].numel() for b in found) == 36


def test_special_tokens_stand_around_the_text_whatever_the_tokenizer_knows():
    backend = Tokenizer(models.WordLevel({"[S]": 0, "[E]": 1, "[U]": 2, "b": 3}, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex("b"), "removed", invert=True
    )  # drops all other letters
    backend.post_processor = processors.TemplateProcessing("[S] $A [E]", None, [("[S]", 0), ("[E]", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert sequences_of("abba b", tokenizer, 12) == [[0, 3, 3, 3, 1]]
    assert sequences_of("a", tokenizer, 12) == []


def test_number_of_tokens_is_kept_to_the_last_text():
    for wanted in (100, 500, 1000):
        taken = sum(batch["input_ids"].numel() for batch in batches(tokens=wanted))
        assert wanted <= taken < wanted + 200


def test_one_long_book_does_not_fill_the_calibration():
    books = [letter * 200_000 for letter in "abcd"]
    found = text_batches(books, Letters(), tokens=200_000, length=128, seed=0)
    ids = torch.cat([batch["input_ids"].flatten() for batch in found])
    shares = [float((ids == 3 + ord(letter) % 50).float().mean()) for letter in "abcd"]
    assert min(shares) > 0.05
    words = text_batches(["word " * 5000], Letters(), tokens=10**6, length=128, seed=0)
    assert sum(batch["input_ids"].numel() for batch in words) == pytest.approx(25_000, rel=0.03)


def test_order_follows_the_seed():
    first, second, other = batches(seed=1), batches(seed=1), batches(seed=2)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))
    assert any(
        a["input_ids"].shape != b["input_ids"].shape or not torch.equal(a["input_ids"], b["input_ids"])
        for a, b in zip(first, other, strict=False)
    )


def test_texts_without_tokens_are_refused():
    with pytest.raises(FFFError, match="no tokens"):
        text_batches(["", ""], Letters(), tokens=100, length=16, seed=0)


def test_decoder_reads_the_text_shifted_by_one():
    model = BY_NAME["t5"].build()
    (batch,) = with_decoder_inputs(model, [{"input_ids": torch.tensor([[5, 6, 7]])}])
    start = model.config.decoder_start_token_id
    assert batch["decoder_input_ids"].tolist() == [[start, 5, 6]]
    encoder = BY_NAME["bert"].build()
    assert with_decoder_inputs(encoder, [{"input_ids": torch.zeros(1, 1)}])[0].keys() == {"input_ids"}


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "albert", "conv1x1-1d"])
def test_block_inputs_are_what_the_block_reads(name: str):
    case = BY_NAME[name]
    model, inputs = case.build(), case.inputs()
    site = locate(model, inputs)[-1]
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.movedim(site.placement.feature_axis, -1).reshape(-1, site.d_model))
            return x

    x = block_inputs(model, site, [inputs, inputs])
    surgery.replace(model, {site: Spy()})
    with torch.no_grad():
        model(**inputs)
    once = torch.cat(seen)
    if site.shared_calls == 1:
        torch.testing.assert_close(x, torch.cat([once, once]))
    else:  # what later calls of a shared block read follows from what stands in its place
        assert x.shape == (2 * once.shape[0], site.d_model)
        torch.testing.assert_close(x[: seen[0].shape[0]], seen[0])


def test_nan_in_the_model_is_named_with_the_block():
    case = BY_NAME["bert"]
    model = case.build()
    sites = locate(model, case.inputs())
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    block_inputs(model, sites[0], [case.inputs()])
    with pytest.raises(FFFError, match=r"layer\.1.*not finite"):
        block_inputs(model, sites[1], [case.inputs()])


def test_a_block_that_is_not_reached_is_named():
    case = BY_NAME["bart"]
    model = case.build()
    site = locate(model, case.inputs())[0]
    with pytest.raises(FFFError, match="never reached"):
        block_inputs(model, site, [])
    assert not model.get_submodule(site.placement.entry[0])._forward_pre_hooks


def calibrate(given, tokenizer=None, name="bert", **options):
    defaults = {"tokens": 500, "length": 16, "seed": 0}
    return calibration_of(BY_NAME[name].build(), given, tokenizer, **(defaults | options))


def test_items_are_texts_or_what_a_forward_pass_takes_and_nothing_is_dropped():
    ids = [torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(n)) for n in range(16)]
    mask = torch.ones(2, 7, dtype=torch.long)
    for items in (
        [{"input_ids": i, "attention_mask": mask} for i in ids],
        ids,
        [(i, mask) for i in ids],
        [*ids[:8], *[(i, mask) for i in ids[8:]]],
        [BatchEncoding({"input_ids": i}) for i in ids],
    ):
        found = calibrate(items)
        assert [len(found.held_out), len(found.fitted)] == [2, 14]
        for batch, own in zip((*found.held_out, *found.fitted), ids, strict=True):
            assert torch.equal(batch["input_ids"], own)
            assert not set(batch) - {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["text", torch.ones(1, 2)], "item 0 is text, item 1 what a forward pass takes; expected all of one"),
        ([torch.ones(1, 2), "text"], "item 1 text"),
        ([torch.ones(1, 2), None], "item 1 is a NoneType; expected text, a row with text, or"),
        (["text", 3], "item 1 is a int"),
        ([("a", "b")], "item 0 is a tuple"),
        ([{"input_ids": [1, 2, 3]}] * 2, 'holds input_ids as list; expected tensors.*return_tensors="pt"'),
        ([torch.ones(1, 2)], "a single batch"),
        ({"input_ids": torch.ones(1, 2)}, "a single batch"),
        ([], "no tokens"),
        ([torch.ones(1, 2), tuple(torch.ones(40, 1))], "item 1 holds 40 arguments; Bert.*forward takes"),
    ],
)  # fmt: skip
def test_items_that_cannot_be_used_are_refused_by_number(given, message: str):
    with pytest.raises(FFFError, match=message):
        calibrate(given, Letters())


def test_a_single_text_is_one_text_and_not_its_letters():
    found = calibrate("one text " * 100, Letters())
    assert max(batch["input_ids"].shape[1] for batch in found.fitted) == 16
