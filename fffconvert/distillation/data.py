"""From files and `datasets` names to token sequences, and from those to batches.

A run draws its rows in an order that depends on the seed and the size of a step alone: not on how many
processes share a step, nor on where a run was resumed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from fffconvert.distillation.recipe import Data, Layout, Unit
from fffconvert.errors import FFFError, first_line
from fffconvert.fit.corpus import rendered
from fffconvert.fit.rows import read_row, text_columns

_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
MOST_HELD_OUT = 2000
SAMPLE = 100
"""Rows that are looked at to find the columns with text."""
WINDOW = 10_000
"""Rows among which a stream is shuffled."""
MEGABATCH = 64
"""Steps' worth of rows that are sorted by length together."""


def read_rows(sources: Sequence[str], data: Data) -> Dataset | IterableDataset:
    """Read sources, with the columns that the recipe names.

    Raises:
        FFFError: A source cannot be read, or lacks a column.
    """
    if not sources:
        raise FFFError("no training text; name files or datasets with `data`, or in the recipe's data.train")
    return cast(
        "Dataset | IterableDataset",
        (_chained if data.streaming else datasets.concatenate_datasets)(
            [_read(source, data) for source in sources]
        ),
    )


def _chained(parts: list[IterableDataset]) -> IterableDataset:
    columns = [", ".join(part.column_names or next(iter(part))) for part in parts]
    if len(set(columns)) > 1:
        which = " and ".join(dict.fromkeys(columns))
        raise FFFError(f"streamed data has text in {which}; stream data with the same columns, or none")
    return cast(IterableDataset, datasets.concatenate_datasets(parts))


def _read(source: str, data: Data) -> Dataset | IterableDataset:
    path = Path(source).expanduser()
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    local = path.exists() or path.is_absolute() or kind in _BUILDERS
    if local and not path.is_file():
        raise FFFError(f"data file {source} does not exist; expected one of {', '.join(_BUILDERS)}, or .gz")
    if local and kind not in _BUILDERS:
        raise FFFError(f"data file {source} is of another kind; expected {', '.join(_BUILDERS)}, or .gz")
    try:
        if local:
            options: dict[str, Any] = {"data_files": str(path)}
            if kind == ".txt":
                options["sample_by"] = "line" if data.lines else "paragraph"
            rows = datasets.load_dataset(_BUILDERS[kind], split="train", streaming=data.streaming, **options)
        else:
            name, _, config = source.partition(":")
            splits = datasets.load_dataset(name, config or None, streaming=data.streaming)
            rows = splits["train"] if "train" in splits else next(iter(splits.values()))
        columns = rows.column_names or list(next(iter(rows)))
    except FFFError:
        raise
    except Exception as error:  # the library and what it calls raise dozens of kinds
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        what = "cannot be read" if local else "is no file, and no dataset of this name could be loaded"
        raise FFFError(f"data {source} {what}: {' '.join(first_line(cause).split())}") from error
    label = [data.label] if data.label else []
    for name in (*data.text, *label):
        if name not in columns:
            raise FFFError(f"data {source} has no column {name!r}; it has {', '.join(columns)}")
    rows = rows.select_columns([*(data.text or _found(rows, columns, data, source)), *label])
    if data.rows:
        rows = rows.take(data.rows) if data.streaming else rows.select(range(min(data.rows, len(rows))))
    return rows


def _found(rows: Dataset | IterableDataset, columns: Sequence[str], data: Data, source: str) -> Sequence[str]:
    """The columns that hold text, by their usual names."""
    first = [dict(row) for row in rows.take(SAMPLE)]
    sample = {name: next((row[name] for row in first if row[name] is not None), None) for name in columns}
    sample.pop(data.label, None)
    try:
        return text_columns(sample, f"data {source}")
    except FFFError as error:
        if "could be read" in str(error):
            raise
        raise FFFError(
            f"data {source} has no column 'text'; it has {', '.join(columns)}: name those that hold text "
            "with `text_columns`, or as data.text of the recipe"
        ) from None


def split_rows(rows: Dataset, data: Data, seed: int) -> tuple[Dataset, Dataset]:
    """Hold rows out for the evaluation; rows with a text of theirs are not trained on.

    Raises:
        FFFError: There are too few rows, or all hold the same text.
    """
    count = min(MOST_HELD_OUT, max(1, round(data.held_out * len(rows))))
    if len(rows) < 2:
        raise FFFError(f"the training data has {len(rows)} rows; expected at least 2, one to hold out")
    parts = rows.train_test_split(count, seed=seed)
    held = {text for row in parts["test"] for text in texts_of_row(row, data)}
    train = parts["train"].filter(partial(_shares_none, data=data, held=frozenset(held)), desc="hold out")
    if not len(train):
        raise FFFError("the training data repeats one text; give others, so that some can be held out")
    return train, parts["test"]


def _shares_none(row: Mapping[str, Any], data: Data, held: frozenset[str]) -> bool:
    return held.isdisjoint(texts_of_row(row, data))


def texts_of_row(row: Mapping[str, Any], data: Data, tokenizer: Any = None) -> list[str]:
    """The texts of one row of what `read_rows` gives; blank ones are left out.

    Args:
        row: Columns with text, and the label.
        data: Names them.
        tokenizer: Its template is for chats.
    """
    own = {name: value for name, value in row.items() if name != data.label and value is not None}
    if not any(own.values()):
        return []
    names = [name for name in data.text if name in own]
    texts = rendered(read_row(own, "a row of the data", names), tokenizer)
    return [text for text in texts if text and not text.isspace()]


def some_held_out(sequences: Dataset) -> Dataset:
    """As many sequences as rows are held out at most, evenly from all: long rows give a thousand each."""
    if len(sequences) <= MOST_HELD_OUT:
        return sequences
    return sequences.select(np.linspace(0, len(sequences) - 1, MOST_HELD_OUT).astype(int))


class Tokenise:
    """Makes sequences of a batch of rows, for `datasets` to map.

    Args:
        tokenizer: A transformers tokenizer.
        data: How texts are cut.
        length: Longest sequence, in tokens.
    """

    def __init__(self, tokenizer: Any, data: Data, length: int) -> None:
        self.tokenizer, self.data, self.length = tokenizer, data, length

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenise rows, given by column."""
        if self.data.label:
            return self._labelled(rows)
        texts = [text for row in _by_row(rows) for text in texts_of_row(row, self.data, self.tokenizer)]
        if self.data.unit is Unit.SENTENCE:
            texts = [sentence for text in texts for sentence in _SENTENCE_END.split(text) if sentence]
        if self.data.layout is Layout.PACK:
            ids = self._packed(texts)
        else:
            ids = self._cut(texts)
        ids = [part for part in ids if len(part) >= self.data.shortest]
        return {"input_ids": ids, "length": [len(part) for part in ids]}

    def _labelled(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        names = [name for name in rows if name != self.data.label]
        columns = [[text or "" for text in rows[name]] for name in self.data.text or names]
        found = self.tokenizer(*columns, truncation=True, max_length=self.length)
        kept = {name: found[name] for name in ("input_ids", "token_type_ids") if name in found}
        return {**kept, "length": [len(ids) for ids in found["input_ids"]], "labels": rows[self.data.label]}

    def _cut(self, texts: list[str]) -> list[list[int]]:
        """Sequences of at most the length, with special tokens; long texts give several."""
        if not texts:
            return []
        if not getattr(self.tokenizer, "is_fast", False):
            found = self.tokenizer(texts, truncation=True, max_length=self.length)
        else:
            found = self.tokenizer(
                texts, truncation=True, max_length=self.length, return_overflowing_tokens=True
            )
        return cast("list[list[int]]", found["input_ids"])

    def _packed(self, texts: list[str]) -> list[list[int]]:
        """Sequences of exactly the length, texts divided by the tokenizer's end (or separator)."""
        special = self.tokenizer.eos_token_id
        divider = self.tokenizer.sep_token_id if special is None else special
        ends = [] if divider is None else [divider]
        found = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        flat = [token for ids in found for token in [*ids, *ends]]
        whole = len(flat) // self.length
        return [flat[i * self.length : (i + 1) * self.length] for i in range(whole)]


def token_sequences(
    rows: Dataset | IterableDataset, tokenizer: Any, data: Data, length: int
) -> Dataset | IterableDataset:
    """Tokenise rows into sequences: columns `input_ids`, `length`, and for tasks `labels`.

    Raises:
        FFFError: No sequence comes of it.
    """
    columns = rows.column_names or list(next(iter(rows)))
    options: dict[str, Any] = {"batched": True, "remove_columns": columns}
    if isinstance(rows, Dataset):
        options["desc"] = "tokenise"
    sequences = rows.map(Tokenise(tokenizer, data, length), **options)
    if isinstance(sequences, Dataset) and not len(sequences):
        raise FFFError(f"the text gives no sequence of {data.shortest} to {length} tokens; give more text")
    return sequences


def _by_row(rows: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Rows that are given by column, one by one."""
    return (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))


def lengths_of(sequences: Dataset) -> np.ndarray:
    """[rows], in tokens; the column is read at once, since row by row takes seconds."""
    return np.asarray(sequences["length"][:])


def content_hash(sequences: Dataset) -> str:
    """A hash of all tokens."""
    digest = hashlib.sha256(lengths_of(sequences).tobytes())
    for part in sequences.with_format("arrow").iter(4096):
        for chunk in part["input_ids"].chunks:
            digest.update(chunk.flatten().to_numpy().tobytes())
    return digest.hexdigest()


class Draws(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows of a whole run, passes over the data one after the other: draw k is row k mod n.

    Args:
        sequences: Token sequences.
        count: How many draws.
        first: The first one's number among all rows, where other sequences come before.
    """

    def __init__(self, sequences: Dataset, count: int, first: int = 0) -> None:
        self.sequences, self.count, self.first = sequences, count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: int) -> dict[str, Any]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[int]) -> list[dict[str, Any]]:
        """Several draws at once."""
        indices = [draw % len(self.sequences) for draw in draws]
        columns = self.sequences[indices]
        return [
            {name: column[i] for name, column in columns.items()} | {"row": self.first + row, "draw": draw}
            for i, (row, draw) in enumerate(zip(indices, draws, strict=True))
        ]


class LengthBuckets(torch.utils.data.Sampler[int]):
    """Draws in random order, in which those of one step are of like length.

    Args:
        lengths: [rows], in tokens.
        count: How many draws.
        group: Sequences of one step, over all processes.
        seed: Order.
        bucket: Sort by length; else the order is random throughout.
    """

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, count: int, group: int, seed: int, *, bucket: bool = True
    ) -> None:
        self.lengths, self.count, self.group = np.asarray(lengths), count, group
        self.seed, self.bucket = seed, bucket

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(self.seed)
        rows = len(self.lengths)
        order = np.concatenate(
            [rng.permutation(rows) + epoch * rows for epoch in range(-(-self.count // rows))]
        )[: self.count]
        if not self.bucket:
            yield from order.tolist()
            return
        for start in range(0, len(order), MEGABATCH * self.group):
            part = order[start : start + MEGABATCH * self.group]
            part = part[np.argsort(self.lengths[part % rows], kind="stable")]
            groups = [part[i : i + self.group] for i in range(0, len(part), self.group)]
            for index in rng.permutation(len(groups)):
                yield from groups[index].tolist()


class Collate:
    """Makes a batch of draws: pads, and masks tokens at random.

    A draw's mask depends on the seed and the draw alone; with a cache of the teacher's outputs, on the row.

    Args:
        tokenizer: A transformers tokenizer.
        data: Shares of masked tokens.
        seed: Of the masks.
        masked: Mask tokens, and give the originals as `labels`.
        fixed: A row has the same mask whenever it is drawn.
    """

    def __init__(self, tokenizer: Any, data: Data, seed: int, *, masked: bool, fixed: bool) -> None:
        self.data, self.seed, self.masked, self.fixed = data, seed, masked, fixed
        pad = tokenizer.pad_token_id
        self.pad: int = tokenizer.eos_token_id or 0 if pad is None else pad
        self.mask, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.special = np.array(tokenizer.all_special_ids)

    def __call__(self, draws: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Give input_ids and attention_mask, [sequences, tokens], labels where there are any, and row."""
        longest = max(len(draw["input_ids"]) for draw in draws)
        batch: dict[str, Any] = {"input_ids": self._pad(draws, "input_ids", self.pad, longest)}
        lengths = torch.tensor([len(draw["input_ids"]) for draw in draws])
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        if "token_type_ids" in draws[0]:
            batch["token_type_ids"] = self._pad(draws, "token_type_ids", 0, longest)
        if "labels" in draws[0]:
            labels = [draw["labels"] for draw in draws]
            graded = any(isinstance(label, float) for label in labels)
            batch["labels"] = torch.tensor(labels, dtype=torch.float32 if graded else None)
        elif self.masked:
            batch["labels"] = torch.full_like(batch["input_ids"], -100)
            for i, draw in enumerate(draws):
                self._mask(batch["input_ids"][i, : lengths[i]], batch["labels"][i, : lengths[i]], draw)
        if "row" in draws[0]:
            batch["row"] = torch.tensor([draw["row"] for draw in draws])
        return batch

    def _pad(self, draws: Sequence[Mapping[str, Any]], name: str, value: int, longest: int) -> Tensor:
        return torch.tensor([[*draw[name], *[value] * (longest - len(draw[name]))] for draw in draws])

    def _mask(self, ids: Tensor, labels: Tensor, draw: Mapping[str, Any]) -> None:
        """Mask one sequence in place; at least one token, so that every sequence teaches something."""
        key = [self.seed, draw["row" if self.fixed else "draw"]] if "row" in draw else ids.tolist()
        rng = np.random.default_rng(key)
        free = np.flatnonzero(~np.isin(ids.numpy(), self.special))
        if not len(free):
            return
        chosen = free[rng.random(len(free)) < self.data.mask]
        if not len(chosen):
            chosen = rng.choice(free, 1)
        labels[chosen] = ids[chosen]
        what = rng.random(len(chosen))
        ids[chosen[what < self.data.mask_replace]] = self.mask
        other = chosen[
            (what >= self.data.mask_replace) & (what < self.data.mask_replace + self.data.mask_random)
        ]
        ids[other] = torch.from_numpy(rng.integers(self.vocabulary, size=len(other)))
