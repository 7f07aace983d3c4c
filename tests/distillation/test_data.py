"""Text: what is read, how it is cut, the order of draws, and masks."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fffconvert.distillation.data import (
    Collate,
    Draws,
    LengthBuckets,
    content_hash,
    read_rows,
    some_held_out,
    split_rows,
    token_sequences,
)
from fffconvert.distillation.recipe import Data, Layout, Unit
from fffconvert.errors import FFFError

TEXTS = ["ba be bi. Bo bu ca ce.", "da de di do du fa fe fi fo fu ga ge gi", " ", ""]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"texts{kind}"
    rows = [{"text": text, "other": 1} for text in TEXTS]
    if kind == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        lines = TEXTS if ".txt" in kind else [json.dumps(row) for row in rows]
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_every_kind_give_the_same_sequences(tmp_path: Path, tokenizer, kind: str, streaming: bool):
    data = Data(train=(str(write(tmp_path, kind)),), streaming=streaming, lines=True)
    sequences = list(token_sequences(read_rows(data.train, data), tokenizer, data, 16))
    assert [row["length"] for row in sequences] == [len(tokenizer(text).input_ids) for text in TEXTS[:2]]
    assert sequences[0]["input_ids"] == tokenizer(TEXTS[0]).input_ids


def test_a_text_of_a_txt_file_is_a_paragraph_unless_it_is_a_line(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n\nthree\n")
    rows = {lines: read_rows([str(path)], Data(lines=lines))["text"] for lines in (False, True)}
    assert [[text.split() for text in found if text.strip()] for found in rows.values()] == [
        [["one", "two"], ["three"]],
        [["one"], ["two"], ["three"]],
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", "does not exist"),
        ("texts.pdf", "of another kind"),
        ("bad.jsonl", "cannot be read"),
        ("columns.jsonl", "has no column 'text'; it has body"),
        ("nobody/nothing", "no dataset of this name could be loaded"),
    ],
)
def test_sources_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch, name: str, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.pdf").write_text("x")
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    (tmp_path / "columns.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(FFFError, match=message) as caught:
        read_rows([name], Data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_with_other_columns_are_read_too(tmp_path: Path, tokenizer, streaming: bool):
    chat = [{"role": "user", "content": "ba be"}, {"role": "assistant", "content": "bi bo"}]
    files = {
        "chat": [{"messages": chat, "id": 1}],
        "pair": [{"premise": "da de di", "hypothesis": "do du fa", "label": 0}],
        "named": [{"text": "fe fi fo", "body": "ga ge gi", "label": 1}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def read(*names: str, **options) -> list[list[int]]:
        data = Data(
            train=tuple(str(tmp_path / f"{name}.jsonl") for name in names), streaming=streaming, **options
        )
        return [row["input_ids"] for row in token_sequences(read_rows(data.train, data), tokenizer, data, 16)]

    ids = [
        tokenizer(text).input_ids for text in ("ba be bi bo", "da de di", "do du fa", "fe fi fo", "ga ge gi")
    ]
    assert read("chat") == ids[:1]
    assert read("pair") == ids[1:3]
    assert read("named") == ids[3:4]
    assert read("named", text=("body",)) == ids[4:]
    if streaming:
        with pytest.raises(FFFError, match="streamed data has text in messages and premise, hypothesis"):
            read("chat", "pair")
    else:
        assert read("chat", "pair") == ids[:3]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
    try:
        assert read("chat") == [tokenizer("ba be . bi bo .").input_ids]
    finally:
        tokenizer.chat_template = None
    (tmp_path / "doubt.jsonl").write_text(json.dumps({"sentence": "ba", "content": "be"}))
    with pytest.raises(
        FFFError, match=r"doubt\.jsonl could be read by content or sentence; .*`text_columns`"
    ):
        read("doubt")


def test_rows_held_out_share_no_text_with_those_trained_on():
    rows = Dataset.from_list([{"premise": f"p{n // 3}", "hypothesis": f"h{n}"} for n in range(300)])
    train, held = split_rows(rows, Data(held_out=0.1), seed=0)
    assert len(held) == 30
    assert not {row["premise"] for row in train} & {row["premise"] for row in held}
    assert len(train) > 150
    copies = Dataset.from_dict({"text": ["ba be"] * 20})
    with pytest.raises(FFFError, match="repeats one text"):
        split_rows(copies, Data(), seed=0)


def test_there_must_be_text(tokenizer):
    with pytest.raises(FFFError, match="`data`"):
        read_rows([], Data())
    with pytest.raises(FFFError, match="gives no sequence"):
        token_sequences(Dataset.from_dict({"text": ["ba"]}), tokenizer, Data(), 16)


def cut(tokenizer, data: Data, texts: list[str], length: int = 8) -> list[list[int]]:
    return list(token_sequences(Dataset.from_dict({"text": texts}), tokenizer, data, length)["input_ids"])


def test_long_texts_give_several_sequences_and_lose_nothing(tokenizer):
    found = cut(tokenizer, Data(shortest=1), [TEXTS[1]])
    assert all(len(ids) <= 8 and ids[0] == 2 and ids[-1] == 3 for ids in found)
    assert [token for ids in found for token in ids[1:-1]] == tokenizer(TEXTS[1]).input_ids[1:-1]


def test_sentences_are_sequences_of_their_own(tokenizer):
    found = cut(tokenizer, Data(unit=Unit.SENTENCE, shortest=1), [TEXTS[0]])
    assert found == [tokenizer(part).input_ids for part in ("ba be bi.", "Bo bu ca ce.")]


def test_few_long_rows_hold_out_no_more_sequences_than_rows_are_held_out():
    many, few = (Dataset.from_dict({"input_ids": [[n] for n in range(count)]}) for count in (9001, 2000))
    held_out = [ids for (ids,) in some_held_out(many)["input_ids"]]
    assert (len(held_out), held_out[0], held_out[-1]) == (2000, 0, 9000)
    assert {4, 5} == {after - before for before, after in itertools.pairwise(held_out)}
    assert some_held_out(few) is few


def test_packed_sequences_have_one_length_and_no_padding(tokenizer):
    found = cut(tokenizer, Data(layout=Layout.PACK), TEXTS[:2] * 3)
    assert {len(ids) for ids in found} == {8}
    stream = [t for text in TEXTS[:2] * 3 for t in (*tokenizer(text, add_special_tokens=False).input_ids, 3)]
    assert [token for ids in found for token in ids] == stream[: 8 * len(found)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    count=st.integers(1, 150),
    group=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_draws_go_through_all_rows_before_any_comes_again(lengths, count, group, seed):
    draws = list(LengthBuckets(lengths, count, group, seed))
    assert sorted(draws) == sorted(LengthBuckets(lengths, count, group, seed, bucket=False))
    rows = np.bincount(np.array(draws) % len(lengths), minlength=len(lengths))
    assert rows.max() - rows.min() <= 1
    assert len(draws) == count


def test_a_step_has_sequences_of_like_length():
    lengths = np.random.default_rng(0).integers(4, 100, 2000).tolist()
    draws = np.array(list(LengthBuckets(lengths, 2000, 16, 0))).reshape(-1, 16)
    longest = np.array(lengths)[draws].max(1)
    assert np.array(lengths).sum() / (longest * 16).sum() > 0.95
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.3


def collate(tokenizer, draws: list[int], *, fixed: bool = False, seed: int = 0, mask: float = 0.3):
    sequences = Dataset.from_dict(
        {"input_ids": [list(range(2, 2 + n)) for n in (30, 20, 40)], "length": [30, 20, 40]}
    )
    made = Collate(tokenizer, Data(mask=mask), seed, masked=True, fixed=fixed)
    return made(Draws(sequences, 10).__getitems__(draws))


def test_a_mask_depends_on_seed_and_draw_alone(tokenizer):
    both, alone = collate(tokenizer, [0, 1]), collate(tokenizer, [1])
    assert both["input_ids"][1, :20].tolist() == alone["input_ids"][0].tolist()
    assert both["labels"][1, :20].tolist() == alone["labels"][0].tolist()
    later = collate(tokenizer, [4])  # the same row, a pass later
    assert later["row"].tolist() == [1]
    assert later["labels"].tolist() != alone["labels"].tolist()
    assert (
        collate(tokenizer, [4], fixed=True)["labels"].tolist()
        == collate(tokenizer, [1], fixed=True)["labels"].tolist()
    )
    assert collate(tokenizer, [1], seed=1)["labels"].tolist() != alone["labels"].tolist()


def test_masks_spare_special_tokens_and_padding_and_keep_their_shares(tokenizer):
    ids = np.random.default_rng(0).integers(5, 55, (200, 60))
    sequences = Dataset.from_dict({"input_ids": [[2, *row, 3] for row in ids.tolist()], "length": [62] * 200})
    batch = Collate(tokenizer, Data(mask=0.25), 0, masked=True, fixed=False)(
        Draws(sequences, 200).__getitems__(list(range(200)))
    )
    labels, found = batch["labels"].numpy(), batch["input_ids"].numpy()
    chosen = labels != -100
    assert not chosen[:, [0, -1]].any()
    assert abs(chosen[:, 1:-1].mean() - 0.25) < 0.01
    assert (found[~chosen] == np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (2, 3)))[~chosen]).all()
    assert abs((found[chosen] == 4).mean() - 0.8) < 0.02
    assert abs((found[chosen] == labels[chosen]).mean() - 0.1) < 0.02


def test_content_is_told_apart(tokenizer):
    data = Data()
    one, same, other = (
        token_sequences(Dataset.from_dict({"text": texts}), tokenizer, data, 16)
        for texts in (TEXTS[:2], TEXTS[:2], TEXTS[1::-1])
    )
    assert content_hash(one) == content_hash(same) != content_hash(other)
