"""What is held out is of other documents than what is fitted, whatever the texts are."""

from __future__ import annotations

import random

import pytest
import torch

from fffconvert.errors import FFFError
from fffconvert.fit.calibrate import text_calibration
from fffconvert.fit.held_out import split_batches, split_documents
from fffconvert.fit.rows import Row


class Letters:
    """A tokenizer: one token a letter, 1 before and 2 after every text."""

    def __call__(self, text: str, **_):
        ids = [3 + ord(letter) % 50 for letter in text]
        return {"input_ids": [1, *ids, 2], "special_tokens_mask": [1, *[0] * len(ids), 1]}


def letters_of(batches) -> set[int]:
    return {int(token) for batch in batches for token in batch["input_ids"].flatten() if token > 2}


@pytest.mark.parametrize("seed", range(5))
def test_no_document_is_on_both_sides(seed: int):
    order = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    documents = [letter * order.randint(20, 3000) for letter in letters]
    found = text_calibration([*documents, *documents], Letters(), tokens=10**6, length=32, seed=seed)
    held, fitted = letters_of(found.held_out), letters_of(found.fitted)
    assert held
    assert fitted
    assert not held & fitted
    assert held | fitted == {3 + ord(letter) % 50 for letter in letters}
    count = sum(batch["input_ids"].numel() for batch in found.held_out)
    assert count < 0.2 * sum(batch["input_ids"].numel() for batch in (*found.held_out, *found.fitted))


def test_a_share_of_the_asked_tokens_is_held_out():
    documents = [f"{number} " * 50 for number in range(300)]
    found = text_calibration(documents, Letters(), tokens=8000, length=64, seed=0)
    held = sum(batch["input_ids"].numel() for batch in found.held_out)
    fitted = sum(batch["input_ids"].numel() for batch in found.fitted)
    assert 1000 <= held < 1200
    assert 8000 <= held + fitted < 8200


def test_the_texts_of_a_row_stay_together_and_a_text_of_two_rows_is_on_one_side():
    rows = [(f"premise {number // 3}", f"hypothesis {number}") for number in range(60)]
    held, fitted = split_documents(rows, seed=0)
    assert not set(held) & set(fitted)
    for premise, hypothesis in rows:
        assert (hypothesis in held) <= (premise in held)
    found = text_calibration(
        [Row((text, text[::-1])) for text in "abc def ghi".split()], Letters(), tokens=99, length=8, seed=0
    )
    assert len(letters_of(found.held_out)) == 3


def test_a_single_text_is_cut_in_two_and_the_same_one_twice_too():
    text = " ".join(f"word{number}" for number in range(1000))
    for documents in ([(text,)], [(text,), (text,)]):
        (held,), (fitted,) = split_documents(documents, seed=0)
        assert fitted + held == text
        assert 0.1 < len(held) / len(text) < 0.15
    with pytest.raises(FFFError, match="no tokens"):
        split_documents([("",), (" ",)], seed=0)


def test_copies_of_a_batch_are_not_fitted():
    batches = [{"input_ids": torch.full((2, 3), number % 20), "flag": True} for number in range(40)]
    held, fitted = split_batches(batches)
    assert len(held) == 5
    assert len(fitted) == 30
    assert {int(b["input_ids"][0, 0]) for b in held}.isdisjoint(int(b["input_ids"][0, 0]) for b in fitted)
    with pytest.warns(UserWarning, match="repeats one batch"):
        assert len(split_batches(batches[:1] * 5)[1]) == 4
    with pytest.raises(FFFError, match="single batch"):
        split_batches(batches[:1])
