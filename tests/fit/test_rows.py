"""Text in rows of data: usual columns, named ones, chats, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from zoo import ARCHITECTURES

from fffconvert.errors import FFFError
from fffconvert.fit import read_corpus
from fffconvert.fit.calibrate import calibration_of
from fffconvert.fit.corpus import rendered
from fffconvert.fit.rows import Row, plain_chat, read_row

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({"<s>": 0, "[U]": 1, "hello": 2, "hi": 3, "there": 4}, unk_token="[U]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="[U]")
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"text": "a", "content": "b", "messages": CHAT}, ("a",)),
        ({"content": "a", "id": 3}, ("a",)),
        ({"sentence": "a", "label": 1}, ("a",)),
        ({"premise": "a", "hypothesis": "b", "label": 2}, ("a", "b")),
        ({"query": "a", "positive": "b"}, ("a", "b")),
        ({"query": "a", "positive": "b", "negative": "c"}, ("a", "b", "c")),
        ({"query": "a", "pos": ["b", "c"], "neg": ["d"]}, ("a", "b", "c", "d")),
        ({"question": "a", "sentence": "b", "idx": 1, "label": 0}, ("a", "b")),
        ({"id": "x", "title": "t", "question": "a", "context": "b", "answers": {"text": ["c"]}}, ("a", "b")),
        ({"messages": CHAT, "prompt": "hello"}, ("hello\n\nhi there",)),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ("q\n\na",)),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]},
            ("q",),
        ),
        ({"prompt": "q", "completion": "a"}, ("q\n\na",)),
        ({"instruction": "i", "input": "", "output": "a"}, ("i\n\na",)),
    ],
)
def test_usual_columns_are_found(row: dict[str, Any], texts: tuple[str, ...]):
    assert rendered(read_row(row, "row")) == texts


def test_columns_that_are_named_go_before_all_others():
    row = {"text": "a", "body": "b", "turns": CHAT, "none": None, "parts": ["c", "d"], "number": 3}
    assert read_row(row, "row", ["body"]) == "b"
    assert rendered(read_row(row, "row", ["body", "parts", "none"])) == ("b", "c", "d")
    assert rendered(read_row(row, "row", ["turns"])) == ("hello\n\nhi there",)
    with pytest.raises(FFFError, match="row, number is a int"):
        read_row(row, "row", ["number"])
    with pytest.raises(FFFError, match=r"holds the fields text, .*; expected other, which `text_columns`"):
        read_row(row, "row", ["other"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "a", "content": "b"}, r"content or sentence; name the column with `text_columns`"),
        ({"body": "a", "id": 1}, r"the fields body, id; expected text .* `text_columns`"),
        ({"messages": []}, "the fields messages"),
        ("text", "holds a str"),
    ],
)
def test_doubt_is_refused(row: Any, message: str):
    with pytest.raises(FFFError, match=message):
        read_row(row, "row")


def test_chats_are_read_in_the_words_of_the_template_and_begin_once():
    chat = read_row({"messages": CHAT}, "row")
    assert isinstance(chat, Row)
    (text,) = chat.rendered(tokenizer(TEMPLATE))
    assert text == "[user]hello[assistant]hi there"
    own = tokenizer(TEMPLATE)
    assert own(text)["input_ids"] == own.apply_chat_template(CHAT, tokenize=True)["input_ids"]
    assert chat.rendered(tokenizer()) == ("hello\n\nhi there",)
    (exchange,) = read_row({"prompt": "hello", "completion": "hi"}, "row").rendered(own)  # type: ignore[union-attr]
    assert exchange == "[user]hello[assistant]hi"


def test_a_template_that_refuses_a_chat_is_said():
    strict = tokenizer("{{ raise_exception('no system role') }}")
    with pytest.warns(UserWarning, match="no system role"):
        assert plain_chat(tuple(CHAT), strict) == "hello\n\nhi there"


def test_files_of_every_kind_are_read(tmp_path: Path):
    rows = [{"messages": CHAT}, {"sentence": "one"}, {"premise": "a", "hypothesis": "b"}, {"content": " "}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    read = read_corpus([path])
    assert [rendered(item) for item in read] == [("hello\n\nhi there",), ("one",), ("a", "b")]
    path.write_text(json.dumps({"text": "a", "body": "b"}))
    assert read_corpus([path], ["body"]) == ["b"]


def test_rows_calibrate_from_python_too():
    model = next(case for case in ARCHITECTURES if case.name == "bert").build()
    words = tokenizer()
    rows = [{"premise": "hello there " * n, "hypothesis": f"hi {n}", "label": 0} for n in range(1, 30)]
    found = calibration_of(model, rows, words, tokens=300, length=16, seed=0)
    assert found.held_out
    assert found.fitted
    named = [{"text": "hello", "body": "hi there " * n} for n in range(1, 30)]
    found = calibration_of(model, named, words, tokens=300, length=16, seed=0, columns=("body",))
    assert not any((batch["input_ids"] == 2).any() for batch in found.fitted)
